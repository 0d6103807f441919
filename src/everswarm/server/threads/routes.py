"""`/api/threads`: the conversations of who calls, or for whom. What is another's looks as if it were not there."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from everswarm.schemas.base import Timestamp
from everswarm.schemas.thread import ExportFormat, ThreadCreate, ThreadDetail, ThreadRename, ThreadView
from everswarm.server.auth import ActingUserDep
from everswarm.server.database import DatabaseDep
from everswarm.server.threads import service
from everswarm.server.threads.export import export_thread

router = APIRouter(prefix="/api/threads", tags=["threads"])


@router.post("", status_code=201)
def create_thread(database: DatabaseDep, user: ActingUserDep, wanted: ThreadCreate | None = None) -> ThreadView:
    """Begin a conversation. Chats with its id in the header `X-Everswarm-Thread` continue it."""
    return service.create_thread(database, user=user, title=wanted.title if wanted else None)


@router.get("")
def list_threads(
    database: DatabaseDep,
    user: ActingUserDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[Timestamp | None, Query(description="`updated_at` of the last one of the page before")] = None,
) -> list[ThreadView]:
    """List your conversations, the one with the newest turn first."""
    return service.list_threads(database, user=user, before=before, limit=limit)


@router.get("/{thread_id}")
def get_thread(database: DatabaseDep, user: ActingUserDep, thread_id: str) -> ThreadDetail:
    """Show one conversation with all that was said."""
    return service.get_thread(database, thread_id, user=user)


@router.patch("/{thread_id}")
def rename_thread(database: DatabaseDep, user: ActingUserDep, thread_id: str, wanted: ThreadRename) -> ThreadView:
    """Give a conversation another title."""
    return service.rename_thread(database, thread_id, user=user, title=wanted.title)


@router.delete("/{thread_id}", status_code=204)
def delete_thread(database: DatabaseDep, user: ActingUserDep, thread_id: str) -> None:
    """Delete a conversation, and all of its answers that nobody has judged."""
    service.delete_thread(database, thread_id, user=user)


@router.get("/{thread_id}/export", response_class=Response)
def export(
    database: DatabaseDep,
    user: ActingUserDep,
    thread_id: str,
    form: Annotated[ExportFormat, Query(alias="format")] = "json",
) -> Response:
    """Download a conversation: `json`, `jsonl` as fine-tuning tools take it, or `markdown` to read."""
    exported = export_thread(service.get_thread(database, thread_id, user=user), form)
    headers = {
        "Content-Disposition": f'attachment; filename="{exported.filename}"',
        "Cache-Control": "private, no-store",
    }
    return Response(exported.content, media_type=exported.media_type, headers=headers)
