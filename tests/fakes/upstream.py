"""A fake upstream: a real HTTP server of the OpenAI protocol that says what it is told and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from everswarm.llm.fake import FakeChatModel

TRUE_USAGE = "true"  # what `Behaviour.usage` reports where it does not lie
NO_USAGE = "none"


@dataclass
class Behaviour:
    """How it answers from now on."""

    answer: str = "The capital of France is Paris."
    delay_seconds: float = 0.0  # before each piece of a stream, and before a whole answer
    first_byte_seconds: float = 0.0  # before anything, the status line included
    status: int = 200
    body: bytes | None = None  # sent as it is, instead of an answer
    headers: dict[str, str] = field(default_factory=dict)  # of the answer, whatever it is
    usage: Any = TRUE_USAGE  # anything else is sent in its place; NO_USAGE for none at all
    raw_bytes: bool = False  # "\udcff" in the answer is sent as the byte ff, which is no UTF-8
    cut_after_pieces: int | None = None  # then the connection breaks
    ends_with_done: bool = True  # whether a stream says [DONE]
    line_end: bytes = b"\n"
    comments: bool = False  # before each event
    write_bytes: int | None = None  # a stream is written in portions of so many bytes, wherever that cuts it
    models: Sequence[str] = ("org/model", "org/one", "org/two", "someone/good-model")  # that it says it serves
    repeat_forever: bool = False  # a stream that never ends by itself


class TokenQuota:
    """What the upstream itself grants in any interval of `window_seconds`; above that it answers 429.

    A call counts from the moment at which it arrives, with what it really uses.
    """

    def __init__(self, tokens: int, *, window_seconds: float) -> None:
        self.tokens = tokens
        self.window_seconds = window_seconds
        self.granted: list[tuple[float, int]] = []  # moment, tokens
        self.refused = 0

    def take(self, tokens: int) -> bool:
        """Count one call, if it fits."""
        now = time.monotonic()
        in_window = sum(used for moment, used in self.granted if moment > now - self.window_seconds)
        if in_window + tokens > self.tokens:
            self.refused += 1
            return False
        self.granted.append((now, tokens))
        return True

    @property
    def total_granted(self) -> int:
        return sum(tokens for _, tokens in self.granted)


class FakeUpstream:
    """A context manager; runs in a thread of its own. A request takes the next of `script`, or else `behaviour`."""

    def __init__(self, *, script: Iterable[Behaviour] = (), quota: TokenQuota | None = None, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.script = deque(script)
        self.quota = quota
        self.requests: list[dict[str, Any]] = []
        self.request_headers: list[dict[str, str]] = []
        self.reader_left = threading.Event()
        self.base_url = ""
        self._port = 0
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._runner: web.AppRunner
        self._site: web.TCPSite | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def die(self) -> None:
        """Break all connections; nobody listens any more."""
        self._run(self._close_socket)

    def revive(self) -> None:
        """Listen again, at the same address."""
        self._run(self._open_socket)

    def _run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await self._open_socket()
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        self._listening.set()

    async def _open_socket(self) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def _close_socket(self) -> None:
        assert self._site is not None
        assert self._runner.server is not None
        await self._site.stop()
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _models(self, _request: web.Request) -> web.Response:
        data = [{"id": model, "object": "model"} for model in self.behaviour.models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.requests.append(payload)
        self.request_headers.append(dict(request.headers))
        asked = self.script.popleft() if self.script else self.behaviour
        try:
            await asyncio.sleep(asked.first_byte_seconds)
            return await self._answer(request, payload, asked)
        except (asyncio.CancelledError, ConnectionError):
            self.reader_left.set()
            raise

    async def _answer(self, request: web.Request, payload: dict[str, Any], asked: Behaviour) -> web.StreamResponse:
        if asked.status != 200 or asked.body is not None:
            return web.Response(status=asked.status, body=asked.body or b"", headers=asked.headers)
        model = FakeChatModel([asked.answer], model=payload["model"])
        whole = await model.chat(payload)
        if self.quota is not None and not self.quota.take(whole["usage"]["total_tokens"]):
            return web.json_response({"error": {"message": "over the quota"}}, status=429, headers={"Retry-After": "2"})
        if payload.get("stream"):
            return await self._stream(request, payload, asked, model)
        await asyncio.sleep(asked.delay_seconds)
        return web.Response(
            body=_encoded(_with_usage(whole, asked), asked), content_type="application/json", headers=asked.headers
        )

    async def _stream(
        self, request: web.Request, payload: dict[str, Any], asked: Behaviour, model: FakeChatModel
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **asked.headers})
        await response.prepare(request)
        sent = 0
        async for event in self._events(payload, asked, model):
            await asyncio.sleep(asked.delay_seconds)
            if sent == asked.cut_after_pieces:
                assert request.transport is not None
                request.transport.abort()
                return response
            for portion in _portions(event, asked.write_bytes):
                await response.write(portion)
            sent += 1
        return response

    async def _events(
        self, payload: dict[str, Any], asked: Behaviour, model: FakeChatModel
    ) -> AsyncGenerator[bytes, None]:
        begin = b": still here" + asked.line_end * 2 + b"event: message" + asked.line_end if asked.comments else b""
        end = asked.line_end * 2
        while True:
            async for [chunk] in model.stream(payload):
                told = _with_usage(chunk, asked)
                if told["choices"] or "usage" in told:
                    yield begin + b"data: " + _encoded(told, asked) + end
            if not asked.repeat_forever:
                break
        if asked.ends_with_done:
            yield begin + b"data: [DONE]" + end


def _with_usage(answer: Mapping[str, Any], asked: Behaviour) -> dict[str, Any]:
    """Return `answer` with what it says of its tokens as `asked`; a chunk that says nothing stays as it is."""
    told = dict(answer)
    if "usage" in told and asked.usage != TRUE_USAGE:
        del told["usage"]
        if asked.usage != NO_USAGE:
            told["usage"] = asked.usage
    return told


def _encoded(value: object, asked: Behaviour) -> bytes:
    if asked.raw_bytes:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return json.dumps(value).encode()


def _portions(data: bytes, size: int | None) -> list[bytes]:
    return [data] if size is None else [data[start : start + size] for start in range(0, len(data), size)]
