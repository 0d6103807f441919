"""What browsers are told: run only our own scripts, be framed by nobody, send no address on."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_INLINE_SCRIPT = re.compile(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_EVERYWHERE = (
    NO_SNIFFING,
    (b"referrer-policy", b"no-referrer"),  # a sign-in link holds a key
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def content_policy(page: str) -> str:
    """Return the Content-Security-Policy under which `page` runs: our files, and the scripts written inside it."""
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page)]
    inline = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'self'; script-src 'self'{inline}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )


class BrowserHeaders:
    """Middleware that adds the headers to every answer that does not set them itself."""

    def __init__(self, app: ASGIApp, *, policy: str) -> None:
        """`policy` holds for every page that does not bring its own."""
        self._app = app
        self._added = (*_EVERYWHERE, (b"content-security-policy", policy.encode("latin-1")))
        self._names = frozenset(name for name, _ in self._added)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        def send_with_headers(message: Message) -> Awaitable[None]:  # not async: one step less for each piece
            if message["type"] == "http.response.start":
                message["headers"] = self._completed(list(message.get("headers", ())))
            return send(message)

        await self._app(scope, receive, send_with_headers)

    def _completed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        brought = self._names.intersection([name for name, _ in headers])
        if not brought:
            return [*headers, *self._added]
        return [*headers, *(header for header in self._added if header[0] not in brought)]
