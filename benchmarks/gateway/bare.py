"""The least that a gateway in Python can do: bytes in, bytes out, with the HTTP server and client that ours uses.

`python bare.py PORT BASE_URL`: a raw ASGI application on uvicorn (uvloop, httptools), aiohttp behind it; no routing,
no parsing, no keys. What ours costs beyond this is what its features cost.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class PassThrough:
    """Sends each request's body on, and the answer back as it comes."""

    def __init__(self, base_url: str) -> None:
        """Prepare; the session is opened on the loop of the first request."""
        self._base_url = base_url
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=256)
            self._session = aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"})
        url = self._base_url + scope["path"].removeprefix("/v1")
        async with self._session.request(scope["method"], url, data=await _body(receive)) as answer:
            kind = answer.headers.get("Content-Type", "application/json").encode()
            if answer.content_length is not None:
                body = await answer.read()
                headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


if __name__ == "__main__":
    uvicorn.run(
        PassThrough(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
