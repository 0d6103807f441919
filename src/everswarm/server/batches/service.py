"""Batches: asked for, looked at, cancelled. What is done for them is in `run.py`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from everswarm.errors import BadRequestError, ConflictError, NotFoundError, QuotaSpentError
from everswarm.identifiers import new_id
from everswarm.server.batches import repository
from everswarm.server.batches.files import INPUT, no_such_file
from everswarm.server.batches.objects import KEPT_SECONDS, BatchCreate
from everswarm.server.database import Database

WINDOW_SECONDS = 24 * 3600  # the time that a batch has
UNFINISHED_LIMIT = 50  # batches of one key that have not ended
ASK_AGAIN_SECONDS = 60  # where there are more


def create_batch(
    database: Database, wanted: BatchCreate, *, owner: str, sees_all: bool = False, now: datetime
) -> Row[Any]:
    """Begin a batch; its input is checked soon after.

    Raises:
        NotFoundError: the input file is not there, or another's.
        BadRequestError: that file is none of requests.
        QuotaSpentError: too many batches of this owner have not ended.
    """
    kept = wanted.output_expires_after
    row = {
        "id": f"batch_{new_id().replace('-', '')}",
        "owner": owner,
        "status": "validating",
        **wanted.model_dump(exclude={"output_expires_after"}),
        "total": 0,
        "completed": 0,
        "failed": 0,
        "output_seconds": KEPT_SECONDS if kept is None else kept.seconds,
        "created_at": now,
        "expires_at": now + timedelta(seconds=WINDOW_SECONDS),
    }
    with database.transaction() as connection:
        given = repository.find_file(connection, wanted.input_file_id, owner=None if sees_all else owner)
        if given is None:
            raise no_such_file(wanted.input_file_id)
        if given.purpose != INPUT:
            raise BadRequestError(
                f"The file {given.id} has the purpose {given.purpose!r}; the input of a batch is one that was uploaded "
                "with the purpose 'batch'."
            )
        if repository.count_unfinished(connection, owner) >= UNFINISHED_LIMIT:
            raise QuotaSpentError(
                f"{UNFINISHED_LIMIT} batches of this key have not ended, the most that one key may have. Wait for one, "
                "or cancel one: POST /v1/batches/{id}/cancel.",
                retry_after_seconds=ASK_AGAIN_SECONDS,
            )
        repository.insert_batch(connection, row)
        return _existing(repository.find_batch(connection, str(row["id"]), owner=None), str(row["id"]))


def get_batch(database: Database, batch_id: str, *, owner: str | None) -> Row[Any]:
    """Return one batch of `owner`, or of anybody where that is None.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.read() as connection:
        return _existing(repository.find_batch(connection, batch_id, owner=owner), batch_id)


def list_batches(
    database: Database, *, owner: str | None, after: str | None, limit: int
) -> tuple[list[Row[Any]], bool]:
    """Return one page, the newest first, and whether there are more."""
    with database.read() as connection:
        rows = repository.page_of_batches(connection, owner=owner, after=after, limit=limit + 1)
    return rows[:limit], len(rows) > limit


def cancel_batch(database: Database, batch_id: str, *, owner: str | None, now: datetime) -> Row[Any]:
    """Ask a batch to end: what runs may finish, the rest is not begun. A second time changes nothing.

    Raises:
        NotFoundError: it is not there, or another's.
        ConflictError: it has ended, or is about to.
    """
    with database.transaction() as connection:
        row = _existing(repository.find_batch(connection, batch_id, owner=owner, hold=True), batch_id)
        if row.status in ("cancelling", "cancelled"):
            return row
        if row.status not in ("validating", "in_progress"):
            raise ConflictError(f"The batch {batch_id} is {row.status}; there is nothing left to cancel.")
        repository.update_batch(connection, batch_id, status="cancelling", cancelling_at=now)
        return _existing(repository.find_batch(connection, batch_id, owner=owner), batch_id)


def _existing(row: Row[Any] | None, batch_id: str) -> Row[Any]:
    if row is None:
        shown = "".join(letter if letter.isprintable() else "_" for letter in batch_id[:100])
        raise NotFoundError(f"There is no batch {shown!r}. GET /v1/batches lists yours.")
    return row
