"""Equal requests share one upstream call, and no reader harms another."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

import pytest

from everswarm.errors import QuotaSpentError, UnavailableError
from everswarm.server.gateway import sharing
from everswarm.server.gateway.sharing import SharedCalls

KEY = b"key"


class Upstream:
    """Answers when it is told to, and notes what is done to it."""

    def __init__(self, lists=4):
        self.lists = lists
        self.calls = 0
        self.cancelled = 0
        self.closed = 0
        self.given = 0
        self.error = None
        self.begin = asyncio.Event()
        self.more = asyncio.Semaphore(0)
        self.cleanup_seconds = 0.0

    def let_all(self):
        self.begin.set()
        for _ in range(self.lists + 1):
            self.more.release()

    async def whole(self):
        self.calls += 1
        try:
            await self.begin.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(self.cleanup_seconds)
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return {"answer": self.calls}

    async def stream(self):
        about = await self.whole()
        return about, self.chunks()

    async def chunks(self):
        try:
            for number in range(self.lists):
                await self.more.acquire()
                self.given += 1
                yield [{"number": number}]
            await self.more.acquire()
            if self.error is not None:
                raise self.error
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            await asyncio.sleep(self.cleanup_seconds)
            self.closed += 1


async def turns(count=10):
    """Let everybody else run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def read_all(shared, upstream):
    stream = await shared.stream(KEY, upstream.stream)
    return [chunk["number"] async for together in stream.chunks for chunk in together]


async def numbers(chunks):
    return [chunk["number"] async for together in chunks for chunk in together]


@pytest.fixture
async def upstream():
    return Upstream()


@pytest.fixture
async def shared():
    """Whatever a test did, nothing stays behind."""
    calls = SharedCalls()
    yield calls
    await turns()
    assert len(calls) == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


class TestWhole:
    async def test_thousand_equal_requests_are_one_call(self, shared, upstream):
        tasks = [asyncio.create_task(shared.whole(KEY, upstream.whole)) for _ in range(1000)]
        await turns()
        upstream.begin.set()
        answers = await asyncio.gather(*tasks)
        assert upstream.calls == 1
        assert sum(joined for _, joined in answers) == 999
        assert all(answer is answers[0][0] for answer, _ in answers)

    async def test_other_requests_are_other_calls(self, shared, upstream):
        upstream.begin.set()
        await asyncio.gather(*(shared.whole(bytes([number]), upstream.whole) for number in range(5)))
        assert upstream.calls == 5

    async def test_later_request_is_a_call_of_its_own(self, shared, upstream):
        upstream.begin.set()
        assert await shared.whole(KEY, upstream.whole) == ({"answer": 1}, False)
        assert await shared.whole(KEY, upstream.whole) == ({"answer": 2}, False)

    async def test_error_reaches_every_reader_as_its_own(self, shared, upstream):
        upstream.error = QuotaSpentError("spent", retry_after_seconds=7)
        tasks = [asyncio.create_task(shared.whole(KEY, upstream.whole)) for _ in range(5)]
        await turns()
        upstream.begin.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert upstream.calls == 1
        assert len({id(error) for error in errors}) == 5
        for error in errors:
            assert type(error) is QuotaSpentError
            assert (str(error), error.retry_after_seconds) == ("spent", 7)

    async def test_error_is_not_shared_with_later_requests(self, shared, upstream):
        upstream.error = UnavailableError("down")
        upstream.begin.set()
        with pytest.raises(UnavailableError) as caught:
            await shared.whole(KEY, upstream.whole)
        assert caught.value is upstream.error  # the only reader gets the thing itself
        upstream.error = None
        assert await shared.whole(KEY, upstream.whole) == ({"answer": 2}, False)

    async def test_unexpected_error_reaches_every_reader(self, shared, upstream):
        upstream.error = ZeroDivisionError()
        upstream.begin.set()
        errors = await asyncio.gather(*(shared.whole(KEY, upstream.whole) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [ZeroDivisionError] * 3

    async def test_start_that_fails_at_once_is_an_error(self, shared):
        def start():
            raise UnavailableError("no")

        with pytest.raises(UnavailableError):
            await shared.whole(KEY, start)

    @pytest.mark.parametrize("leaving", [0, 1, 2])
    async def test_reader_that_leaves_is_not_noticed(self, shared, upstream, leaving):
        tasks = [asyncio.create_task(shared.whole(KEY, upstream.whole)) for _ in range(3)]
        await turns()
        tasks.pop(leaving).cancel()
        await turns()
        upstream.begin.set()
        assert [answer for answer, _ in await asyncio.gather(*tasks)] == [{"answer": 1}] * 2
        assert upstream.cancelled == 0

    async def test_last_reader_that_leaves_ends_the_call_and_waits_for_its_end(self, shared, upstream):
        upstream.cleanup_seconds = 0.02
        tasks = [asyncio.create_task(shared.whole(KEY, upstream.whole)) for _ in range(3)]
        await turns()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert upstream.cancelled == 1
        assert all(task.cancelled() for task in tasks)

    async def test_nobody_joins_a_call_that_is_being_ended(self, shared, upstream):
        upstream.cleanup_seconds = 0.02
        first = asyncio.create_task(shared.whole(KEY, upstream.whole))
        await turns()
        first.cancel()
        await turns()
        second = asyncio.create_task(shared.whole(KEY, upstream.whole))
        await turns()
        upstream.begin.set()
        assert await second == ({"answer": 2}, False)
        assert upstream.cancelled == 0  # still at it
        await asyncio.wait([first])
        assert upstream.cancelled == 1

    async def test_reader_with_a_deadline_leaves_alone(self, shared, upstream):
        patient = asyncio.create_task(shared.whole(KEY, upstream.whole))
        await turns()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await shared.whole(KEY, upstream.whole)
        upstream.begin.set()
        assert await patient == ({"answer": 1}, False)

    async def test_call_cancelled_from_outside_reaches_its_readers(self, shared, upstream):
        reader = asyncio.create_task(shared.whole(KEY, upstream.whole))
        await turns()
        [call] = asyncio.all_tasks() - {reader, asyncio.current_task()}
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    @pytest.mark.parametrize("after", range(8))
    @pytest.mark.parametrize("readers", [1, 2])
    async def test_cancellation_at_any_moment_leaves_nothing(self, shared, upstream, after, readers):
        tasks = [asyncio.create_task(shared.whole(KEY, upstream.whole)) for _ in range(readers)]
        for turn in range(8):
            if turn == 3:
                upstream.begin.set()
            if turn == after:
                tasks[0].cancel()
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) or results[0] == ({"answer": 1}, False)
        for result in results[1:]:
            assert result[0]["answer"] >= 1


class TestStream:
    async def test_thousand_equal_requests_are_one_call(self, shared, upstream):
        tasks = [asyncio.create_task(read_all(shared, upstream)) for _ in range(1000)]
        await turns()
        upstream.let_all()
        assert await asyncio.gather(*tasks) == [[0, 1, 2, 3]] * 1000
        assert upstream.calls == 1
        assert (upstream.closed, upstream.cancelled) == (1, 0)

    async def test_every_reader_is_told_who_answers(self, shared, upstream):
        upstream.let_all()
        first, second = await asyncio.gather(*(shared.stream(KEY, upstream.stream) for _ in range(2)))
        assert [first.joined, second.joined] == [False, True]
        assert first.about is second.about
        assert await numbers(first.chunks) == await numbers(second.chunks) == [0, 1, 2, 3]

    async def test_late_reader_gets_all_from_the_first_on(self, shared, upstream):
        upstream.begin.set()
        first = await shared.stream(KEY, upstream.stream)
        for number in range(2):
            upstream.more.release()
            assert await anext(first.chunks) == [{"number": number}]
        second = await shared.stream(KEY, upstream.stream)
        assert second.joined
        assert await anext(second.chunks) == [{"number": 0}, {"number": 1}]  # together: it was there
        upstream.let_all()
        assert await numbers(first.chunks) == await numbers(second.chunks) == [2, 3]
        assert upstream.calls == 1

    async def test_request_after_the_end_is_a_call_of_its_own(self, shared, upstream):
        upstream.let_all()
        assert await read_all(shared, upstream) == [0, 1, 2, 3]
        upstream.let_all()
        assert await read_all(shared, upstream) == [0, 1, 2, 3]
        assert upstream.calls == 2

    async def test_pieces_come_as_they_are_made(self, shared, upstream):
        upstream.begin.set()
        stream = await shared.stream(KEY, upstream.stream)
        for number in range(4):
            waiting = asyncio.create_task(anext(stream.chunks))
            await turns()
            assert not waiting.done()
            upstream.more.release()
            assert await waiting == [{"number": number}]
        await stream.chunks.aclose()

    async def test_slow_reader_holds_nobody_back(self, shared, upstream):
        upstream.let_all()
        slow = await shared.stream(KEY, upstream.stream)
        assert await read_all(shared, upstream) == [0, 1, 2, 3]
        assert upstream.closed == 1
        assert await numbers(slow.chunks) == [0, 1, 2, 3]

    async def test_error_before_the_first_piece_reaches_every_reader(self, shared, upstream):
        upstream.error = UnavailableError("down", retry_after_seconds=9)
        tasks = [asyncio.create_task(read_all(shared, upstream)) for _ in range(4)]
        await turns()
        upstream.begin.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert len({id(error) for error in errors}) == 4
        assert {(type(error), str(error), error.retry_after_seconds) for error in errors} == {
            (UnavailableError, "down", 9)
        }
        upstream.error = None
        upstream.let_all()
        assert await read_all(shared, upstream) == [0, 1, 2, 3]

    async def test_error_in_the_middle_comes_after_the_pieces(self, shared, upstream):
        upstream.begin.set()
        upstream.error = None
        streams = [await shared.stream(KEY, upstream.stream) for _ in range(3)]
        upstream.error = UnavailableError("cut")
        upstream.let_all()
        for stream in streams:
            got = []
            with pytest.raises(UnavailableError, match="cut"):
                async for together in stream.chunks:
                    got += together
            assert len(got) == 4
        assert upstream.closed == 1

    @pytest.mark.parametrize("leaving", [0, 1, 2])
    async def test_reader_that_leaves_is_not_noticed(self, shared, upstream, leaving):
        upstream.begin.set()
        streams = [await shared.stream(KEY, upstream.stream) for _ in range(3)]
        upstream.more.release()
        for stream in streams:
            await anext(stream.chunks)
        await streams.pop(leaving).chunks.aclose()
        upstream.let_all()
        assert [await numbers(stream.chunks) for stream in streams] == [[1, 2, 3]] * 2
        assert upstream.cancelled == 0

    async def test_first_reader_cancelled_before_it_begins_is_not_noticed(self, shared, upstream):
        tasks = [asyncio.create_task(read_all(shared, upstream)) for _ in range(3)]
        await turns()
        tasks.pop(0).cancel()
        await turns()
        upstream.let_all()
        assert await asyncio.gather(*tasks) == [[0, 1, 2, 3]] * 2

    async def test_last_reader_that_closes_ends_the_call_and_waits_for_its_end(self, shared, upstream):
        upstream.begin.set()
        upstream.cleanup_seconds = 0.02
        streams = [await shared.stream(KEY, upstream.stream) for _ in range(2)]
        await turns()
        await streams[0].chunks.aclose()
        assert upstream.closed == 0
        await streams[1].chunks.aclose()
        assert (upstream.cancelled, upstream.closed) == (1, 1)

    async def test_stream_closed_unread_is_left(self, shared, upstream):
        upstream.begin.set()
        stream = await shared.stream(KEY, upstream.stream)
        await stream.chunks.aclose()
        assert len(shared) == 0
        upstream.let_all()
        assert await read_all(shared, upstream) == [0, 1, 2, 3]
        assert upstream.calls == 2

    async def test_stream_that_is_dropped_is_left(self, shared, upstream):
        upstream.begin.set()
        stream = await shared.stream(KEY, upstream.stream)
        await turns()
        del stream
        gc.collect()
        await turns(20)
        assert upstream.closed == 1
        assert len(shared) == 0

    async def test_nobody_joins_a_stream_that_is_being_ended(self, shared, upstream):
        upstream.begin.set()
        upstream.cleanup_seconds = 0.02
        first = await shared.stream(KEY, upstream.stream)
        await turns()
        closing = asyncio.create_task(first.chunks.aclose())
        await turns()
        assert not closing.done()
        second = await shared.stream(KEY, upstream.stream)
        assert not second.joined
        upstream.let_all()
        assert await numbers(second.chunks) == [0, 1, 2, 3]
        await closing

    @pytest.mark.parametrize("after", range(30))
    @pytest.mark.parametrize("readers", [1, 3])
    async def test_cancellation_at_any_moment_leaves_nothing(self, shared, upstream, after, readers):
        tasks = [asyncio.create_task(read_all(shared, upstream)) for _ in range(readers)]
        for turn in range(30):
            if turn == 4:
                upstream.begin.set()
            if turn >= 6 and turn % 3 == 0:
                upstream.more.release()
            if turn == after:
                tasks[0].cancel()
            await asyncio.sleep(0)
        upstream.let_all()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) or results[0] == [0, 1, 2, 3]
        assert results[1:] == [[0, 1, 2, 3]] * (readers - 1)
        assert upstream.calls <= 1
        assert upstream.closed <= upstream.calls

    async def test_upstream_is_not_read_far_ahead_of_its_readers(self, shared):
        upstream = Upstream(lists=1000)
        upstream.let_all()
        stream = await shared.stream(KEY, upstream.stream)
        await turns(500)
        assert upstream.given == sharing.AHEAD_LISTS
        assert await numbers(stream.chunks) == list(range(1000))

    async def test_slow_reader_goes_on_when_the_fast_one_has_left(self, shared):
        upstream = Upstream(lists=1000)
        upstream.let_all()
        slow = await shared.stream(KEY, upstream.stream)
        fast = await shared.stream(KEY, upstream.stream)
        read = 0
        while read < 500:
            read += len(await anext(fast.chunks))
        await turns(200)
        await fast.chunks.aclose()
        assert await numbers(slow.chunks) == list(range(1000))

    async def test_stream_without_end_keeps_a_bounded_part(self, shared, monkeypatch):
        monkeypatch.setattr(sharing, "KEPT_LISTS", 200)
        upstream = Upstream(lists=5000)
        upstream.let_all()
        alive = weakref.WeakSet()

        class Tracked(list):
            __hash__ = object.__hash__

        async def start():
            async def chunks():
                async with contextlib.aclosing(upstream.chunks()) as given:
                    async for together in given:
                        tracked = Tracked(together)
                        alive.add(tracked)
                        yield tracked

            return None, chunks()

        stalled = await shared.stream(KEY, start)
        fast = await shared.stream(KEY, start)
        read = 0
        while read < 3000:
            read += len(await anext(fast.chunks))
        gc.collect()
        assert len(shared) == 0  # who comes now begins anew
        assert len(alive) < 200 + 3 * sharing.AHEAD_LISTS
        with pytest.raises(UnavailableError, match="fell 200 pieces behind"):
            await numbers(stalled.chunks)
        assert (await numbers(fast.chunks))[-1] == 4999
