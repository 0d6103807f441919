"""A way past the web framework for the few routes whose own cost must vanish beside the work that they are for.

What the framework and the other middlewares do for a route is done here in a few lines: the limit of the body, the
answers to errors, the headers for browsers. Each is declared in its room all the same, so that it is documented.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everswarm.server.edge.body_limit import announced, counted, too_long
from everswarm.server.edge.browser_headers import NO_SNIFFING
from everswarm.server.edge.problems import response_to


class ExpressApp(FastAPI):
    """The framework's application, which hands a POST to a path of `express` on before it does anything else."""

    express: Mapping[str, ASGIApp] = MappingProxyType({})  # by path
    express_body_bytes = 0  # the longest body there; all of it is read before it is answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        handler = self.express.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await super().__call__(scope, receive, send)
        else:
            await self._handle(handler, scope, receive, send)

    async def _handle(self, handler: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message["headers"], NO_SNIFFING]
            await send(message)

        try:
            promised_bytes, is_chunked = announced(scope)
            if promised_bytes > self.express_body_bytes:
                raise too_long(self.express_body_bytes)
            limited = counted(receive, self.express_body_bytes) if is_chunked else receive
            await handler(scope, limited, send_with_headers)
        except Exception as error:
            if has_begun:
                raise
            await response_to(error, scope)(scope, receive, send_with_headers)
