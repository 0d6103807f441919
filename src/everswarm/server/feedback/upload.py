"""`POST /api/training/feedback`, as a bare ASGI application: devices send day and night, and each record costs.

Errors are raised; `edge.express` answers them.
"""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime
from http import HTTPStatus

from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from everswarm.errors import EverswarmError, ForbiddenError, TooLargeError
from everswarm.schemas.base import Identifier, Record, Timestamp
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope as KeyScope
from everswarm.schemas.sync import MAX_INTERACTIONS_A_BATCH, TrainingFeedback
from everswarm.server.auth import authorise
from everswarm.server.bodies import read_body
from everswarm.server.feedback.batches import Upload, data_id, upload_of
from everswarm.server.feedback.drafting import Incoming
from everswarm.server.feedback.ingest import Ingest
from everswarm.server.feedback.rate import RecordLimit

FEEDBACK_PATH = "/api/training/feedback"
READ_ASIDE_BYTES = 128 * 1024  # a longer body is read in a thread, so that nobody's answer stops meanwhile
PIECE_BYTES = 64 * 1024
GZIP_WINDOW = 31  # zlib's number for 'gzip, of any window'
MAX_GZIP_MEMBERS = 100  # each costs a copy of what follows it

_NOBODY = ""
_NEVER = datetime.min.replace(tzinfo=UTC)


class _Item(JudgedInteraction):
    """A record that may leave to its batch whose it is, and when it was."""

    device_id: Identifier = _NOBODY
    timestamp: Timestamp = _NEVER


class _Batch(Record):
    device_id: Identifier
    interactions: list[_Item] = Field(max_length=MAX_INTERACTIONS_A_BATCH)
    timestamp: Timestamp


async def upload_training_feedback(scope: Scope, receive: Receive, send: Send) -> None:
    """Store one batch, and answer when it is durable."""
    state = scope["app"].state
    principal = await authorise(scope["headers"], state.database, KeyScope.DEVICE)
    is_admin = principal.scope is KeyScope.ADMIN
    limit: RecordLimit = state.record_limit
    if not is_admin:
        limit.check(principal.user)
    try:
        upload = await _upload(scope, receive, is_admin)
    except (EverswarmError, HTTPException, RequestValidationError):
        if not is_admin:
            limit.take(principal.user, 1)  # or what costs work and stores nothing could be sent without end
        raise
    records = len(upload.items) + len(upload.rejected)
    if not is_admin:
        limit.take(principal.user, records)
    ingest: Ingest = state.ingest
    try:
        outcome = await ingest.store(upload.submission(principal))
    except EverswarmError as error:
        if not is_admin and not isinstance(error, ForbiddenError):
            limit.give_back(principal.user, records)
        raise
    await _answer(upload.answer(outcome).model_dump_json().encode(), send)


async def _upload(scope: Scope, receive: Receive, is_admin: bool) -> Upload:
    body = await read_body(receive)
    is_gzip, limit_bytes = _is_gzip(scope["headers"]), scope["app"].state.settings.max_body_bytes
    if is_gzip or len(body) > READ_ASIDE_BYTES:
        return await run_in_threadpool(_read_packed, body, is_gzip, limit_bytes, is_admin)
    return read_upload(body, others_allowed=is_admin)


async def _answer(body: bytes, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_gzip(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-encoding":
            encoding = value.decode("latin-1").strip().lower()
            if encoding in ("gzip", "x-gzip"):
                return True
            if encoding not in ("", "identity"):
                raise HTTPException(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    f"The body is packed as {encoding[:40]!r}, and only gzip is unpacked here. Send it plain, or with "
                    "Content-Encoding: gzip.",
                    headers={"Accept-Encoding": "gzip"},
                )
    return False


def _read_packed(body: bytes, is_gzip: bool, limit_bytes: int, others_allowed: bool) -> Upload:
    plain = unpacked(body, limit_bytes=limit_bytes) if is_gzip else body
    return read_upload(plain, others_allowed=others_allowed)


def unpacked(packed: bytes, *, limit_bytes: int) -> bytes:
    """Return what a gzip body holds; at most one piece more than `limit_bytes` is ever unpacked.

    Raises:
        TooLargeError: it holds more.
        HTTPException: 400, it is not gzip, it is cut short, or it has more than 100 members.
    """
    pieces: list[bytes] = []
    size_bytes = members = 0
    while packed or not pieces:  # a gzip file may have several members
        members += 1
        if members > MAX_GZIP_MEMBERS:
            raise _broken(f"it has more than {MAX_GZIP_MEMBERS} gzip members, the most that are read")
        member = zlib.decompressobj(GZIP_WINDOW)
        while not member.eof:
            try:
                piece = member.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise _broken(str(error)) from error
            size_bytes += len(piece)
            if size_bytes > limit_bytes:
                raise TooLargeError(
                    f"The body unpacks to more than {limit_bytes:,} bytes, the most that a request may have here. "
                    "Send it in smaller batches; whoever runs the server can raise EVERSWARM_MAX_BODY_BYTES."
                )
            if not piece and not member.eof:
                raise _broken("it ends too early")
            pieces.append(piece)
            packed = member.unconsumed_tail
        packed = member.unused_data
    return b"".join(pieces)


def _broken(why: str) -> HTTPException:
    return HTTPException(
        HTTPStatus.BAD_REQUEST,
        f"The body cannot be unpacked as gzip: {why}. Nothing was stored; pack it again, or send it plain.",
    )


def read_upload(body: bytes, *, others_allowed: bool) -> Upload:
    """Return the batch that `body` holds as JSON: all at once where it is faultless, else item by item.

    Args:
        body: the JSON.
        others_allowed: the sender may send the records of other devices.

    Raises:
        RequestValidationError: it is no batch at all.
    """
    try:
        batch = _Batch.model_validate_json(body)
    except ValidationError:
        return _slowly(body, others_allowed=others_allowed)
    device_id, at = batch.device_id, batch.timestamp
    said = [vars(one) for one in batch.interactions]  # a field of a model costs four times as much
    items = [
        Incoming(one, of["device_id"] or device_id, at if of["timestamp"] == _NEVER else of["timestamp"])
        for one, of in zip(batch.interactions, said, strict=True)
    ]
    if not others_allowed and {item.user for item in items} - {device_id}:
        return _slowly(body, others_allowed=False)
    id_ = data_id(device_id, [of["id"] for of in said])
    return Upload(device_id, id_, items, range(len(items)), [], size_bytes=len(body))


def _slowly(body: bytes, *, others_allowed: bool) -> Upload:
    return upload_of(_read_slowly(body), others_allowed=others_allowed)._replace(size_bytes=len(body))


def _read_slowly(body: bytes) -> TrainingFeedback:
    try:
        return TrainingFeedback.model_validate(json.loads(body))
    except json.JSONDecodeError as error:
        raise _unreadable(error.pos, error.msg) from error
    except UnicodeDecodeError as error:
        raise _unreadable(error.start, "not UTF-8 text") from error
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in problems]) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in …
        raise _unreadable(0, "nested too deeply, or a number is too long") from error


def _unreadable(position: int, why: str) -> RequestValidationError:
    return RequestValidationError([{"type": "json_invalid", "loc": ("body", position), "msg": f"not JSON: {why}"}])
