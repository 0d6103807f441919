"""One upstream call for requests that are equal and run at the same time.

The call runs in a task of its own, so that no reader's leaving harms the others; it is cancelled when the last reader
has left. Nothing is shared with a request that comes after the end, neither the answer nor the error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from everswarm.errors import EverswarmError, UnavailableError
from everswarm.llm.protocol import Chunk

AHEAD_LISTS = 64  # of chunks, that are taken from upstream before the fastest reader wants them
KEPT_LISTS = 16_384  # a longer stream takes no more readers, and a reader that is so far behind is cut off

T = TypeVar("T")


class SharedStream(NamedTuple, Generic[T]):
    """One reader's share of a stream. Close `chunks` to leave, also when they were never read."""

    about: T
    chunks: AsyncGenerator[list[Chunk], None]
    joined: bool  # somebody else had begun it


class SharedCalls:
    """The calls that run now, by the key of their request. For one event loop."""

    def __init__(self) -> None:
        """Begin with none."""
        self._wholes: dict[bytes, _Whole[Any]] = {}
        self._streams: dict[bytes, _Stream[Any]] = {}

    def __len__(self) -> int:
        """Return how many calls may be joined now."""
        return len(self._wholes) + len(self._streams)

    async def whole(self, key: bytes, start: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return what `start` gives, and whether it is that of an equal call which ran already.

        Every reader gets the same object: do not change it. What `start` raises reaches every reader.
        """
        call: _Whole[T] | None = self._wholes.get(key)
        joined = call is not None
        if call is None:
            call = _Whole(self._wholes, key)
            call.task = asyncio.create_task(call.run(start))
        call.enter(joined=joined)
        try:
            while not call.ended:
                await call.news()
            return call.outcome(), joined
        finally:
            if call.leave():
                await call.abandon()

    async def stream(
        self, key: bytes, start: Callable[[], Awaitable[tuple[T, AsyncGenerator[list[Chunk], None]]]]
    ) -> SharedStream[T]:
        """Return a stream that gives all chunks from the first one on, to each reader at its own pace.

        Args:
            key: equal for equal requests.
            start: begins the call; returns something to tell every reader, and the chunks. What it raises, and what
                the chunks raise, reaches every reader.
        """
        call: _Stream[T] | None = self._streams.get(key)
        joined = call is not None
        if call is None:
            call = _Stream(self._streams, key)
            call.task = asyncio.create_task(call.run(start))
        call.enter(joined=joined)
        try:
            reader = _Reader(call.first)
            while not call.begun and not call.ended:
                await call.news()
            about = call.about()
        except BaseException:
            if call.leave():
                await call.abandon()
            raise
        chunks = call.read(reader)
        await anext(chunks)  # enters its `try`, so that closing it unread leaves too
        return SharedStream(about, chunks, joined)


class _Call:
    """A call that runs, those who wait for its news, and its place in the table."""

    task: asyncio.Task[None]

    def __init__(self, table: dict[bytes, Any], key: bytes) -> None:
        table[key] = self
        self._table = table
        self._key = key
        self._create_future = asyncio.get_running_loop().create_future
        self._waiting: list[asyncio.Future[None]] = []
        self._readers = 0
        self._error: BaseException | None = None
        self._is_joined = False
        self.ended = False

    def enter(self, *, joined: bool) -> None:
        self._readers += 1
        self._is_joined |= joined

    def leave(self) -> bool:
        """Return whether the call is now to be abandoned."""
        self._readers -= 1
        return not self._readers and not self.ended

    async def abandon(self) -> None:
        """End the work upstream; return when it has ended."""
        self._close_door()
        self.task.cancel()
        await asyncio.wait((self.task,))

    def news(self) -> asyncio.Future[None]:
        """Return what is done at the next news; one for each who waits, because a cancellation cancels it too."""
        news: asyncio.Future[None] = self._create_future()
        self._waiting.append(news)
        return news

    def _tell(self) -> None:
        for news in self._waiting:
            if not news.done():
                news.set_result(None)
        self._waiting.clear()

    def _fail(self, error: BaseException) -> None:
        """Note why the call ended; raise what is not an error of the call, such as its cancellation."""
        if self._readers:
            self._error = error
        if not isinstance(error, Exception):
            raise error

    def _end(self) -> None:
        self.ended = True
        self._close_door()
        self._tell()

    def _close_door(self) -> None:
        """Let nobody join any more."""
        if self._table.get(self._key) is self:
            del self._table[self._key]

    def _raise_error(self) -> None:
        """Raise what the call raised, if it did; where several read it, to each a copy."""
        error = self._error
        if error is None:
            return
        if not self._is_joined or not isinstance(error, EverswarmError):
            raise error
        own = type(error).__new__(type(error), *error.args)
        own.__dict__.update(error.__dict__)
        raise own from error


class _Whole(_Call, Generic[T]):
    """A call that gives its answer at once."""

    _result: T

    async def run(self, start: Callable[[], Awaitable[T]]) -> None:
        try:
            self._result = await start()
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    def outcome(self) -> T:
        self._raise_error()
        return self._result


class _Link:
    """Chunks that came together, and what came next. What all readers have passed is freed by itself."""

    __slots__ = ("following", "number", "together")

    def __init__(self, together: list[Chunk], number: int) -> None:
        self.together = together
        self.number = number
        self.following: _Link | None = None


class _Reader:
    """Where one reader is."""

    __slots__ = ("link",)

    def __init__(self, link: _Link | None) -> None:
        self.link = link  # the last that it took; None when it was cut off


class _Stream(_Call, Generic[T]):
    """A call that gives its answer piece by piece."""

    _about: T

    def __init__(self, table: dict[bytes, Any], key: bytes) -> None:
        super().__init__(table, key)
        self.begun = False
        self.first: _Link | None = _Link([], 0)  # where those who join begin
        self._places: set[_Reader] = set()
        self._ahead = 0  # lists since a reader had read all that there was
        self._wanted: asyncio.Future[None] | None = None  # the call waits until one has again

    async def run(self, start: Callable[[], Awaitable[tuple[T, AsyncGenerator[list[Chunk], None]]]]) -> None:
        try:
            self._about, chunks = await start()
            self.begun = True
            self._tell()
            async with contextlib.aclosing(chunks):
                await self._gather(chunks)
        except BaseException as error:
            self._fail(error)
        finally:
            self._end()

    def about(self) -> T:
        if not self.begun:
            self._raise_error()
        return self._about

    async def read(self, reader: _Reader) -> AsyncGenerator[list[Chunk], None]:
        """Yield an empty list, then all chunks; what came while this reader did not look, in one list."""
        self._places.add(reader)
        try:
            yield []
            while link := reader.link:
                following = link.following
                if following is not None:
                    together = following.together
                    if following.following is not None:
                        following, together = _all_after(link)
                    reader.link = following
                    del link, following  # a reader that waits here must not hold what was cut off
                    yield together
                elif self.ended:
                    self._raise_error()
                    return
                else:
                    self._ahead = 0
                    if self._wanted is not None:
                        self._want_more(self._wanted)
                    await self.news()
            raise UnavailableError(
                f"This reader fell {KEPT_LISTS} pieces behind an answer that others read too. Ask again; it will not "
                "be shared then."
            )
        finally:
            self._places.discard(reader)
            if self.leave():
                await self.abandon()

    async def _gather(self, chunks: AsyncGenerator[list[Chunk], None]) -> None:
        last = self.first or _Link([], 0)
        async for together in chunks:
            last.following = link = _Link(together, last.number + 1)
            last = link
            if self._waiting:
                self._tell()
            if link.number >= KEPT_LISTS:
                self._become_long(link.number)
            self._ahead += 1
            if self._ahead >= AHEAD_LISTS:
                self._wanted = self._create_future()
                await self._wanted

    def _want_more(self, wanted: asyncio.Future[None]) -> None:
        self._wanted = None
        if not wanted.done():
            wanted.set_result(None)

    def _become_long(self, number: int) -> None:
        """Keep no more than a bounded part of the answer from here on."""
        self._close_door()
        self.first = None
        if number % AHEAD_LISTS == 0:
            for reader in self._places:
                if reader.link is not None and number - reader.link.number > KEPT_LISTS:
                    reader.link = None


def _all_after(link: _Link) -> tuple[_Link, list[Chunk]]:
    """Return the last link, and all chunks that came after `link`."""
    together: list[Chunk] = []
    while link.following is not None:
        link = link.following
        together += link.together
    return link, together
