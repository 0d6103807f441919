"""Refuses bodies over the limit before a route reads them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everswarm.errors import TooLargeError
from everswarm.server.edge.problems import error_response


class BodyLimit:
    """Middleware. Uploads go straight to disk: artifacts are limited by the registry, other files while they come."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, uploads: Mapping[str, int] | None = None) -> None:
        """Let bodies of at most `max_body_bytes` through to `app`; `uploads` has paths and the bytes to post there."""
        self._app = app
        self._limit_bytes = max_body_bytes
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or _is_upload(scope):
            await self._app(scope, receive, send)
            return
        upload_bytes = self._uploads.get(scope["path"])
        limit_bytes = self._limit_bytes if upload_bytes is None else upload_bytes
        promised_bytes, is_chunked = announced(scope)
        if promised_bytes > limit_bytes:  # the protocol server sees to it that no more comes than was promised
            await _refuse(too_long(limit_bytes, is_upload=upload_bytes is not None), scope, receive, send)
            return
        if is_chunked and upload_bytes is not None:
            receive = counted(receive, upload_bytes, is_upload=True)
        elif is_chunked:
            messages = await self._read(receive)
            if messages is None:
                await _refuse(too_long(limit_bytes), scope, receive, send)
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


async def _refuse(error: TooLargeError, scope: Scope, receive: Receive, send: Send) -> None:
    await error_response(error, scope["path"])(scope, receive, send)


def too_long(limit_bytes: int, *, is_upload: bool = False) -> TooLargeError:
    """Return what a body over the limit is answered with."""
    raised = "" if is_upload else "; whoever runs the server can raise EVERSWARM_MAX_BODY_BYTES"
    return TooLargeError(
        f"The body has more than {limit_bytes:,} bytes, the most that a request may have here. Send it in "
        f"smaller parts{raised}."
    )


def counted(receive: Receive, limit_bytes: int, *, is_upload: bool = False) -> Receive:
    """Pass on a body of unknown length as it comes; over the limit whoever reads it meets our error."""
    size_bytes = 0

    async def next_message() -> Message:
        nonlocal size_bytes
        message = await receive()
        size_bytes += len(message.get("body", b""))
        if size_bytes > limit_bytes:
            raise too_long(limit_bytes, is_upload=is_upload)
        return message

    return next_message


def announced(scope: Scope) -> tuple[int, bool]:
    """Return how many bytes the headers promise, 0 when they do not say; and whether it comes in chunks instead."""
    promised_bytes, is_chunked = 0, False
    for name, value in scope["headers"]:
        if name == b"content-length":
            promised_bytes = int(value) if value.isdigit() else 0
        elif name == b"transfer-encoding":
            is_chunked = True
    return promised_bytes, is_chunked


def _is_upload(scope: Scope) -> bool:
    path: str = scope["path"]
    return scope["method"] == "PUT" and path.startswith("/api/artifacts/")


def _replay(messages: list[Message], receive: Receive) -> Receive:
    waiting = iter(messages)

    async def next_message() -> Message:
        return next(waiting, None) or await receive()

    return next_message
