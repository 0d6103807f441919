"""The error object that OpenAI clients read."""

from __future__ import annotations

from typing import Any

SERVER_ERROR = 500
_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "insufficient_permissions",
    404: "not_found",
    413: "request_too_large",
    422: "invalid_request",
    429: "rate_limit_exceeded",
    507: "no_space",
    503: "service_unavailable",
}


def openai_error(status: int, message: str, *, field: str | None = None) -> dict[str, Any]:
    """Return what stands under `error` for an HTTP `status`; `field` is the one that is wrong."""
    kind = "server_error" if status >= SERVER_ERROR else "invalid_request_error"
    return {"message": message, "type": kind, "code": _CODES.get(status, "error"), "param": field}
