"""`/v1/files` and `/v1/batches`, as OpenAI's clients use them. What is another's looks as if it were not there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from everswarm.errors import BadRequestError
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, require
from everswarm.server.batches import files, service
from everswarm.server.batches.objects import (
    KEPT_SECONDS,
    BatchCreate,
    ExpiresAfter,
    batch_object,
    file_object,
    list_object,
)
from everswarm.server.batches.runner import BatchRunner
from everswarm.server.database import DatabaseDep

MAX_FIELDS = 8  # of an upload, besides the file
_UPLOAD_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": [files.INPUT]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer"},
    },
}

router = APIRouter(prefix="/v1", tags=["batches"])

Caller = Annotated[Principal, Depends(require(Scope.USER, Scope.WORKER))]
Cursor = Annotated[str | None, Query(max_length=64)]


@router.post(
    "/files",
    openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD_FORM}}}},
)
async def upload_file(request: Request, database: DatabaseDep, principal: Caller) -> dict[str, Any]:
    """Keep a file of requests for 30 days, or as long as `expires_after` says."""
    # parsed here and not by FastAPI, which would take 100 MB in before it looks at the key
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        sent, kept_seconds = _checked_form(form)
        chunks = iter(lambda: sent.file.read(files.PIECE_BYTES), b"")
        row = await run_in_threadpool(
            files.upload_file,
            database,
            chunks,
            owner=principal.user,
            filename=sent.filename or "file.jsonl",
            now=_now(),
            kept_seconds=kept_seconds,
        )
    return file_object(row)


@router.get("/files")
def list_files(
    database: DatabaseDep,
    principal: Caller,
    after: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=20)] = None,
) -> dict[str, Any]:
    """List your files; an admin sees everybody's."""
    rows, has_more = files.list_files(
        database, owner=_owner(principal), purpose=purpose, after=after, limit=limit, oldest_first=order == "asc"
    )
    return list_object([file_object(row) for row in rows], has_more=has_more)


@router.get("/files/{file_id}")
def get_file(database: DatabaseDep, principal: Caller, file_id: str) -> dict[str, Any]:
    """Describe one file."""
    return file_object(files.get_file(database, file_id, owner=_owner(principal)))


@router.get("/files/{file_id}/content", response_class=StreamingResponse)
def get_file_content(database: DatabaseDep, principal: Caller, file_id: str) -> StreamingResponse:
    """Send the bytes of a file."""
    row = files.get_file(database, file_id, owner=_owner(principal))
    headers = {"Content-Length": str(row.size_bytes), "Cache-Control": "private, no-store"}
    return StreamingResponse(files.read_file(database, row), media_type="application/jsonl", headers=headers)


@router.delete("/files/{file_id}")
def delete_file(database: DatabaseDep, principal: Caller, file_id: str) -> dict[str, Any]:
    """Delete a file and its bytes. A batch that has not read it yet fails."""
    files.delete_file(database, file_id, owner=_owner(principal))
    return {"id": file_id, "object": "file", "deleted": True}


@router.post("/batches")
def create_batch(request: Request, database: DatabaseDep, principal: Caller, wanted: BatchCreate) -> dict[str, Any]:
    """Begin a batch over an uploaded file. It has 24 hours, and waits for quotas behind people and devices."""
    now = _now()
    row = service.create_batch(database, wanted, owner=principal.user, sees_all=_owner(principal) is None, now=now)
    _runner(request).wake()
    return batch_object(row, now=now)


@router.get("/batches")
def list_batches(
    database: DatabaseDep, principal: Caller, after: Cursor = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """List your batches, the newest first; an admin sees everybody's."""
    rows, has_more = service.list_batches(database, owner=_owner(principal), after=after, limit=limit)
    now = _now()
    return list_object([batch_object(row, now=now) for row in rows], has_more=has_more)


@router.get("/batches/{batch_id}")
def get_batch(database: DatabaseDep, principal: Caller, batch_id: str) -> dict[str, Any]:
    """Describe one batch: how far it is, what it waits for, and the files that it made."""
    return batch_object(service.get_batch(database, batch_id, owner=_owner(principal)), now=_now())


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(request: Request, database: DatabaseDep, principal: Caller, batch_id: str) -> dict[str, Any]:
    """End a batch early; the answers that it has are in its output."""
    now = _now()
    row = service.cancel_batch(database, batch_id, owner=_owner(principal), now=now)
    _runner(request).wake()
    return batch_object(row, now=now)


def _checked_form(form: FormData) -> tuple[UploadFile, int]:
    """Return the file of an upload, and for how many seconds it is kept.

    Raises:
        BadRequestError: a field is missing or cannot be used.
    """
    sent, purpose = form.get("file"), form.get("purpose")
    if not isinstance(sent, UploadFile):
        raise BadRequestError("file: an upload has one file, sent as multipart/form-data under this name.")
    if purpose != files.INPUT:
        raise BadRequestError(f"purpose: files here are for batches; send purpose={files.INPUT}.")
    asked = {name: form.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
    if not any(asked.values()):
        return sent, KEPT_SECONDS
    try:
        return sent, ExpiresAfter.model_validate(asked).seconds
    except ValidationError as error:
        wrong = error.errors()[0]
        raise BadRequestError(f"expires_after.{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}.") from error


def _owner(principal: Principal) -> str | None:
    """Whose things this key sees; None is everybody's."""
    return None if principal.scope is Scope.ADMIN else principal.user


def _runner(request: Request) -> BatchRunner:
    runner: BatchRunner = request.app.state.batches
    return runner


def _now() -> datetime:
    return datetime.now(UTC)
