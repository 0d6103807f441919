"""`POST /v1/chat/completions`, as a bare ASGI application: the one route whose own cost must vanish beside a model's.

Errors are raised; `edge.express` answers them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from everswarm.errors import EverswarmError
from everswarm.llm import wire
from everswarm.llm.openai_errors import openai_error
from everswarm.llm.protocol import Chunk
from everswarm.schemas.gateway import Priority
from everswarm.schemas.server import Scope as KeyScope
from everswarm.server.auth import Principal, authorise
from everswarm.server.bodies import read_body
from everswarm.server.gateway import Gateway
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import Chat, read_chat, read_wishes
from everswarm.server.swarm.service import Swarm
from everswarm.server.swarm.turns import Turn

WATCH_AFTER_SECONDS = 0.05  # most answers of a cache or a quick model are over before anybody could leave
SILENCE_SECONDS = 1.0  # before a stream that waits says so
TELL_EVERY_SECONDS = 5.0

CHAT_PATH = "/v1/chat/completions"

Headers = list[tuple[bytes, bytes]]


async def chat_completions(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one chat."""
    state = scope["app"].state
    headers = scope["headers"]
    principal = await authorise(headers, state.database, KeyScope.USER, KeyScope.DEVICE)
    chat = read_chat(await read_body(receive))
    wishes = read_wishes(headers)
    swarm: Swarm = state.swarm
    priority = Priority.DEVICE if principal.scope is KeyScope.DEVICE else Priority.INTERACTIVE
    asker = _asker(principal, chat)
    with ReaderWatch(receive):
        turn = await swarm.begin(chat, asker=asker, wishes=wishes, priority=priority)
        if chat.streams:
            await _answer_in_events(swarm, state.gateway, turn, send)
        else:
            await _answer_whole(swarm, turn, send)


async def _answer_whole(swarm: Swarm, turn: Turn, send: Send) -> None:
    answered = await swarm.answer(turn)
    body = wire.dumps(answered.response)
    headers = _headers(turn, answered.role, cached=answered.cached)
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _answer_in_events(swarm: Swarm, gateway: Gateway, turn: Turn, send: Send) -> None:
    events = Events(send, gateway, turn)
    turn.run.tell = events.status
    try:
        answered = await swarm.answer_stream(turn)
        async with contextlib.aclosing(answered.chunks) as chunks:
            events.answer_begins(_headers(turn, answered.role, cached=answered.cached))
            async for together in chunks:
                await events.send(together)
        await events.end()
    except EverswarmError as error:
        if not events.have_begun:
            raise
        await events.fail(error)
    finally:
        events.close()
        if not events.have_begun:
            await swarm.forget_thread(turn)


class Events:
    """Server-sent events. A stream that has to wait begins with comments that say for how long."""

    def __init__(self, send: Send, gateway: Gateway, turn: Turn) -> None:
        self.have_begun = False
        self._send = send
        self._gateway = gateway
        self._turn = turn
        self._statuses: list[str] = []  # not told yet
        self._news = asyncio.Event()
        self._headers = _headers(turn, None, cached=False)
        self._teller: asyncio.Task[None] | None = None
        self._silence = asyncio.get_running_loop().call_later(SILENCE_SECONDS, self._begin_to_tell)

    def answer_begins(self, headers: Headers) -> None:
        """Stop the comments: from now on there is an answer."""
        self._headers = headers
        self.close()

    async def send(self, chunks: Sequence[Chunk]) -> None:
        """Send what came together, together."""
        if not self.have_begun:
            await self._begin()
        body = b"".join([*self._told(), *[b"data: %b\n\n" % wire.dumps(chunk) for chunk in chunks]])
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """The answer is complete."""
        if not self.have_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def fail(self, error: EverswarmError) -> None:
        """The answer stops here, and why."""
        seconds = error.retry_after_seconds
        told = openai_error(error.status, str(error))
        told |= {"retry_after_seconds": seconds} if seconds is not None else {}
        await self._send({"type": "http.response.body", "body": b"data: %b\n\n" % wire.dumps({"error": told})})

    def status(self, text: str) -> None:
        """Tell what goes on, in a comment that plain clients ignore."""
        self._statuses.append(text)
        self._news.set()
        if self._teller is None:
            self._silence.cancel()
            self._begin_to_tell()

    def _told(self) -> list[bytes]:
        """Return the comments that were not sent yet."""
        if not self._statuses:
            return []
        told = [b": everswarm %b\n\n" % wire.dumps({"status": text}) for text in self._statuses]
        self._statuses.clear()
        return told

    def close(self) -> None:
        """Say nothing more of waiting."""
        self._silence.cancel()
        if self._teller is not None:
            self._teller.cancel()

    async def _begin(self) -> None:
        self.have_begun = True
        if self._turn.recording is not None and self._turn.begins_thread:
            self._turn.recording.thread_is_stored = True  # its id is told now
        headers = [
            *self._headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),  # a proxy must not hold events back
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def _begin_to_tell(self) -> None:
        self._teller = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        await self._begin()
        while True:
            try:
                eta_seconds = await self._gateway.eta_seconds(self._turn.call)
            except EverswarmError:  # the comment keeps the connection open; what is wrong the answer will say
                eta_seconds = None
            text = "waiting for the model" if eta_seconds is None else f"waiting for quota, about {eta_seconds:.0f} s"
            body = b"".join(self._told()) or f": {text}\n\n".encode()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TELL_EVERY_SECONDS):
                    await self._news.wait()


class ReaderWatch:
    """A context that is cancelled, and left without an error, when the reader closes the connection."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_left = False
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        """Begin to watch in a moment."""
        self._task = asyncio.current_task()
        self._begin = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._begin_to_watch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Stop watching."""
        self._begin.cancel()
        if self._watch is not None:
            self._watch.cancel()
        if self._has_left and self._task is not None and isinstance(error, asyncio.CancelledError):
            return self._task.uncancel() == 0  # where others want it cancelled too, it is
        return False

    def _begin_to_watch(self) -> None:
        self._watch = asyncio.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._has_left = True
        if self._task is not None:
            self._task.cancel()


def _asker(principal: Principal, chat: Chat) -> Asker:
    """An administrator's application may name the person that it asks for; nobody else writes in another's name."""
    if principal.scope is KeyScope.ADMIN and chat.user:
        return Asker(chat.user, sender=principal.user)
    return Asker(principal.user)


def _headers(turn: Turn, role: str | None, *, cached: bool) -> Headers:
    headers = []
    if turn.recording is not None:
        headers.append((b"x-interaction-id", turn.recording.id.encode()))
    if turn.run.trace.strategy != "single":
        headers.append((b"x-everswarm-strategy", turn.run.trace.strategy.encode()))
    if turn.thread is not None:
        headers.append((b"x-everswarm-thread", turn.thread.thread_id.encode()))
    if role:
        headers.append((b"x-everswarm-role", role.encode()))
    if cached:
        headers.append((b"x-everswarm-cache", b"hit"))
    return headers
