"""Errors as HTTP, once: problem details (RFC 9457); for `/v1`, the error object that OpenAI clients read."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from everswarm.errors import EverswarmError, NoSpaceError
from everswarm.llm.openai_errors import openai_error
from everswarm.schemas.server import Problem

log = logging.getLogger(__name__)

OPENAI_PREFIX = "/v1/"
SHOWN_FIELDS = 5  # wrong fields that `detail` names; `errors` has them all


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of every route in one form."""
    for kind, handler in _HANDLERS:
        app.add_exception_handler(kind, handler)
    app.add_exception_handler(Exception, _on_surprise)


def response_to(error: Exception, scope: Scope) -> Response:
    """Return the answer to a request that ended with `error`, as the handlers give it; log one that nobody expects."""
    request = Request(scope)
    handler = next((handler for kind, handler in _HANDLERS if isinstance(error, kind)), None)
    if handler is not None:
        with suppress(OSError):  # raised again where it is not about the disk
            return handler(request, error)
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _on_surprise(request, error)


def error_response(error: EverswarmError, path: str) -> Response:
    """Return the answer that `error` means for a request to `path`."""
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="everswarm"'
    return _respond(path, status=error.status, title=error.title, detail=str(error), headers=headers)


def _on_our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EverswarmError)
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return error_response(error, request.url.path)


def _on_wrong_fields(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # never the value that was sent: it may be a secret, or nothing that JSON can say
    wrong = [{"field": _field(item["loc"]), "problem": str(item["msg"])} for item in error.errors()]
    named = "; ".join(f"{item['field']}: {item['problem']}" for item in wrong[:SHOWN_FIELDS])
    more = f"; and {len(wrong) - SHOWN_FIELDS} more" if len(wrong) > SHOWN_FIELDS else ""
    return _respond(
        request.url.path,
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title="Cannot be used as sent",
        detail=f"{named}{more}. Nothing was stored; /docs shows what this route takes.",
        errors=wrong,
    )


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, details = request.url.path, {404: "There is nothing here", 405: f"{request.method} is not possible here"}
    detail = str(error.detail)
    if error.status_code in details and detail == HTTPStatus(error.status_code).phrase:
        detail = f"{details[error.status_code]}: {path}. /docs lists what this server can do."
    title = HTTPStatus(error.status_code).phrase
    return _respond(path, status=error.status_code, title=title, detail=detail, headers=error.headers)


def _on_os_error(request: Request, error: Exception) -> Response:
    if not (isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}):
        raise error
    full = NoSpaceError(
        "The server's disk is full; nothing of this request was kept. Free some space, then send it again."
    )
    return error_response(full, request.url.path)


def _on_surprise(request: Request, error: Exception) -> Response:
    return _respond(  # the server logs the traceback; the caller learns nothing of our inside
        request.url.path,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        title="Internal error",
        detail="The server met an error that it did not expect. Its log has the details; trying again may help.",
    )


def _respond(
    path: str,
    *,
    status: int,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    content: dict[str, Any]
    if path.startswith(OPENAI_PREFIX):
        content = {"error": openai_error(status, detail, field=errors[0]["field"] if errors else None)}
        media_type = "application/json"
    else:
        content = {"type": "about:blank", "title": title, "status": status, "detail": detail, "instance": path}
        content |= {"errors": errors} if errors else {}
        media_type = "application/problem+json"
    # ASCII, because the text may quote half a character that UTF-8 cannot say
    return Response(json.dumps(content), status_code=status, headers=headers, media_type=media_type)


def _field(location: tuple[int | str, ...]) -> str:
    """Return `rating` for a field of the body, and `header X-Artifact-Kind` for what is elsewhere."""
    place, *names = [str(part) for part in location] or ["body"]
    if names and names[0].isdigit() and place == "body":  # JSON that cannot be read: where, not what
        return f"body, character {names[0]}"
    name = ".".join(names)
    return (name or "body") if place == "body" else f"{place} {name}"


_HANDLERS: tuple[tuple[type[Exception], Callable[[Request, Exception], Response]], ...] = (
    (EverswarmError, _on_our_error),
    (RequestValidationError, _on_wrong_fields),
    (HTTPException, _on_http_error),
    (OSError, _on_os_error),
)

PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "What was asked, what the limit is, what to do"},
    "5XX": {"model": Problem, "description": "The server cannot do this now"},
}
