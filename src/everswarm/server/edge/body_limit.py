"""Refuses bodies over the limit before a route reads them."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everswarm.errors import TooLargeError
from everswarm.server.edge.problems import error_response


class BodyLimit:
    """Middleware. Uploads of artifacts pass: they go straight to disk, and the registry limits them."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        """Let bodies of at most `max_body_bytes` through to `app`."""
        self._app = app
        self._limit_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or _is_upload(scope):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        promised = headers.get(b"content-length", b"")
        if promised.isdigit():  # the protocol server sees to it that no more comes than was promised
            if int(promised) > self._limit_bytes:
                await self._refuse(scope, receive, send)
                return
        elif b"transfer-encoding" in headers:
            messages = await self._read(receive)
            if messages is None:
                await self._refuse(scope, receive, send)
                return
            receive = _replay(messages, receive)
        await self._app(scope, receive, send)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """Return the whole body of unknown length; None when it is too long."""
        messages: list[Message] = []
        size_bytes = 0
        while True:
            message = await receive()
            messages.append(message)
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._limit_bytes:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLargeError(
            f"The body has more than {self._limit_bytes:,} bytes, the most that a request may have here. Send it in "
            "smaller parts; whoever runs the server can raise EVERSWARM_MAX_BODY_BYTES."
        )
        await error_response(error, scope["path"])(scope, receive, send)


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "PUT" and path.startswith("/api/artifacts/")


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def next_message() -> Message:
        return next(waiting, None) or await receive()

    return next_message
