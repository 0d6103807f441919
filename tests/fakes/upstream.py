"""A fake upstream: a real HTTP server of the OpenAI protocol that says what it is told and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from everswarm.llm.fake import FakeChatModel


@dataclass
class Behaviour:
    """How it answers from now on."""

    answer: str = "The capital of France is Paris."
    delay_seconds: float = 0.0  # before each piece of a stream, and before a whole answer
    status: int = 200
    body: bytes | None = None  # sent as it is, instead of an answer
    headers: dict[str, str] = field(default_factory=dict)
    cut_after_pieces: int | None = None  # then the connection breaks
    repeat_forever: bool = False  # a stream that never ends by itself


class FakeUpstream:
    """A context manager; runs in a thread of its own."""

    def __init__(self, **behaviour: Any) -> None:
        self.behaviour = Behaviour(**behaviour)
        self.requests: list[dict[str, Any]] = []
        self.request_headers: list[dict[str, str]] = []
        self.reader_left = threading.Event()
        self.base_url = ""
        self._listening = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._listen())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _listen(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        self._listening.set()
        return runner

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "upstream", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        payload = await request.json()
        self.requests.append(payload)
        self.request_headers.append(dict(request.headers))
        asked = self.behaviour
        if asked.status != 200 or asked.body is not None:
            return web.Response(status=asked.status, body=asked.body or b"", headers=asked.headers)
        model = FakeChatModel([asked.answer], model=payload["model"])
        try:
            if payload.get("stream"):
                return await self._stream(request, payload, model)
            await asyncio.sleep(asked.delay_seconds)
            return web.json_response(await model.chat(payload))
        except (asyncio.CancelledError, ConnectionError):
            self.reader_left.set()
            raise

    async def _stream(self, request: web.Request, payload: dict[str, Any], model: FakeChatModel) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent = 0
        while True:
            async for chunk in model.stream(payload):
                await asyncio.sleep(self.behaviour.delay_seconds)
                if sent == self.behaviour.cut_after_pieces:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                sent += 1
            if not self.behaviour.repeat_forever:
                break
        await response.write(b"data: [DONE]\n\n")
        return response
