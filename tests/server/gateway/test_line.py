"""Who is admitted when a quota is short: people first, then devices, then batches; nobody is forgotten."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from everswarm.errors import BadRequestError, QuotaSpentError, UnavailableError
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.line import Admitted, Line, Ticket
from everswarm.server.gateway.quota import Limit, Quota, Refusal, Reservation
from everswarm.server.gateway.quota_store import open_quota_store


@dataclass
class Place:
    """What the line knows of an endpoint."""

    name: str
    quota: Quota | None
    answer_tokens: int = 100
    is_worth_a_try: bool = True


def quota(key: str = "a", tokens: int = 100) -> Quota:
    return Quota(key, (Limit("tokens", tokens, 3600.0),), interactive_share=0.2)


def ticket(tokens: int = 100, *, priority: Priority = Priority.INTERACTIVE, seconds: float | None = None) -> Ticket:
    deadline = None if seconds is None else time.monotonic() + seconds
    return Ticket(priority, answer_tokens=tokens, deadline=deadline)


@pytest.fixture
async def store(tmp_path):
    opened = open_quota_store(home=tmp_path, database_url=None)
    yield opened
    await opened.close()


@pytest.fixture
async def line(store):
    made = Line(store, length=3)
    yield made
    await made.close()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.002)


async def take_all(store, place: Place) -> Reservation:
    held = await store.reserve(place.quota, place.quota.limits[0].amount, priority=Priority.INTERACTIVE)
    assert isinstance(held, Reservation)
    return held


async def test_endpoint_without_quota_admits_at_once(line):
    assert await line.admit(ticket(), [Place("free", None)]) == Admitted(0, None)


async def test_next_endpoint_is_taken_where_the_first_has_no_quota_left(line, store):
    first, second = Place("first", quota("first")), Place("second", quota("second"))
    await take_all(store, first)
    admitted = await line.admit(ticket(), [first, second])
    assert admitted.position == 1
    assert admitted.reservation.key == "second"


async def test_request_waits_and_is_admitted_when_something_is_given_back(line, store):
    place = Place("a", quota())
    held = await take_all(store, place)
    waiting = asyncio.create_task(line.admit(mine := ticket(), [place]))
    await settled()
    assert mine.in_line
    assert line.waiting() == {Priority.INTERACTIVE: 1, Priority.DEVICE: 0, Priority.BATCH: 0}
    store.cancel_soon(held)
    line.look()
    assert (await waiting).position == 0
    assert mine.queued_seconds > 0
    assert not mine.in_line


async def test_people_go_first_then_devices_then_batches(line, store):
    place = Place("a", quota(tokens=1000))
    held = await take_all(store, place)
    order = []

    async def come(name: str, priority: Priority) -> None:
        admitted = await line.admit(ticket(800, priority=priority), [place])
        order.append(name)
        store.cancel_soon(admitted.reservation)
        line.look()

    tasks = []
    for name, priority in (("batch", Priority.BATCH), ("device", Priority.DEVICE), ("person", Priority.INTERACTIVE)):
        tasks.append(asyncio.create_task(come(name, priority)))
        await settled()
    store.cancel_soon(held)
    line.look()
    await asyncio.gather(*tasks)
    assert order == ["person", "device", "batch"]


async def test_nobody_is_overtaken_by_a_smaller_request(line, store):
    place = Place("a", quota())
    half = await store.reserve(place.quota, 50, priority=Priority.INTERACTIVE)
    large = asyncio.create_task(line.admit(ticket(100), [place]))
    await settled()
    small = asyncio.create_task(line.admit(ticket(10), [place]))
    await settled()
    assert not small.done(), "it would fit, and the large one would never have its turn"
    store.cancel_soon(half)
    line.look()
    await large
    assert not small.done()
    small.cancel()


async def test_those_who_wait_for_one_endpoint_do_not_hold_up_another(line, store):
    spent, free = Place("spent", quota("spent")), Place("free", quota("free"))
    await take_all(store, spent)
    waiting = asyncio.create_task(line.admit(ticket(), [spent]))
    await settled()
    assert (await line.admit(ticket(), [free])).position == 0
    waiting.cancel()


async def test_who_may_not_wait_long_enough_is_told_how_long_at_once(line, store):
    place = Place("a", quota())
    await take_all(store, place)
    with pytest.raises(QuotaSpentError, match=r"There is room in 36\d\d s, and the request may wait 5 s") as caught:
        await line.admit(ticket(seconds=5), [place])
    assert 3600 <= caught.value.retry_after_seconds <= 3661


async def test_deadline_ends_the_waiting(line, store):
    place = Place("a", Quota("a", (Limit("tokens", 100, 0.05),)))
    held = await take_all(store, place)
    mine = ticket(seconds=0.3)
    with pytest.raises(QuotaSpentError, match="waited as long as it may"):
        await line.admit(mine, [place])
    assert not mine.in_line
    assert held.tokens == 100


async def test_line_is_bounded_and_a_person_takes_the_place_of_a_batch(line, store):
    place = Place("a", quota(tokens=1000))
    await take_all(store, place)
    batches = [asyncio.create_task(line.admit(ticket(100, priority=Priority.BATCH), [place])) for _ in range(3)]
    await settled()
    with pytest.raises(QuotaSpentError, match="3 requests wait already, the most that may"):
        await line.admit(ticket(100, priority=Priority.BATCH), [place])
    person = asyncio.create_task(line.admit(ticket(100), [place]))
    await settled()
    assert line.waiting()[Priority.INTERACTIVE] == 1
    assert line.waiting()[Priority.BATCH] == 2
    with pytest.raises(QuotaSpentError, match="The line is full, and others go first"):
        await batches[-1]
    for task in (*batches[:2], person):
        task.cancel()


async def test_who_leaves_the_line_leaves_nothing_behind(line, store):
    place = Place("a", quota())
    held = await take_all(store, place)
    leaving = asyncio.create_task(line.admit(ticket(), [place]))
    await settled()
    leaving.cancel()
    store.cancel_soon(held)
    line.look()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await settled()
    state = await store.view(place.quota)
    assert (state.limits[0].held, state.limits[0].used) == (0, 0)


async def test_request_larger_than_any_quota_is_refused_for_good(line):
    with pytest.raises(BadRequestError, match=r"Asked for 101 tokens.*never fit.*smaller max_tokens"):
        await line.admit(ticket(101), [Place("a", quota())])


async def test_eta_counts_those_ahead(line, store):
    place = Place("a", quota())
    held = await take_all(store, place)
    await store.settle(place.quota, held, 100)
    first = asyncio.create_task(line.admit(ticket(100), [place]))
    await settled()
    second = asyncio.create_task(line.admit(behind := ticket(100), [place]))
    await settled()
    assert await line.eta_seconds(behind) > 2 * 3600, "a whole window for the one ahead"
    for task in (first, second):
        task.cancel()


async def test_endpoint_that_closed_itself_is_waited_for(line, store):
    place = Place("a", Quota("a", ()))
    await store.close_key("a", seconds=0.05, reason="It said 429.")
    assert isinstance(await store.reserve(place.quota, 1, priority=Priority.INTERACTIVE), Refusal)
    assert (await line.admit(ticket(1, seconds=10), [place])).position == 0


async def test_closing_turns_all_away(store):
    closing = Line(store, length=3)
    place = Place("a", quota())
    await take_all(store, place)
    waiting = asyncio.create_task(closing.admit(ticket(), [place]))
    await settled()
    await closing.close()
    with pytest.raises(UnavailableError, match="The server is stopping"):
        await waiting


async def test_request_too_large_for_one_endpoint_waits_for_the_other_only(line, store):
    small, large = Place("small", quota("small", 10)), Place("large", quota("large", 100))
    held = await take_all(store, large)
    waiting = asyncio.create_task(line.admit(ticket(50), [small, large]))
    await settled()
    assert (await line.admit(ticket(10), [small])).position == 0, "nobody who can use it waits for it"
    store.cancel_soon(held)
    line.look()
    assert (await waiting).position == 1


async def test_request_too_large_for_all_is_refused_behind_others_too(line, store):
    place = Place("a", quota())
    await take_all(store, place)
    waiting = asyncio.create_task(line.admit(ticket(100), [place]))
    await settled()
    with pytest.raises(BadRequestError, match="never fit"):
        await line.admit(ticket(101), [place])
    waiting.cancel()


async def test_each_endpoint_is_asked_for_its_own_longest_answer(line, store):
    short, long = Place("short", quota("short"), 60), Place("long", quota("long", 1000), 900)
    unsaid = Ticket(Priority.INTERACTIVE, prompt_tokens=10)
    assert (await line.admit(unsaid, [short, long])).reservation.tokens == 70
    assert (await line.admit(Ticket(Priority.INTERACTIVE, prompt_tokens=10), [long])).reservation.tokens == 910
