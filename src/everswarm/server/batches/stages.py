"""The two ends of a batch: its input becomes items, its results become files. Each may be cut off and done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import Row

from everswarm.errors import NotFoundError
from everswarm.server.batches import repository
from everswarm.server.batches.files import OUTPUT, get_file, read_file, receive_file
from everswarm.server.batches.repository import Lease
from everswarm.server.batches.validation import Item, LineError, read_items
from everswarm.server.database import Database

ITEMS_A_TRANSACTION = 500
ITEMS_A_PAGE = 100

Clock = Callable[[], datetime]
_NOT_RUN = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed, because the batch was cancelled."),
}


def validate_batch(database: Database, lease: Lease, *, clock: Clock) -> str:
    """Read the input of a batch into items; return its status: `in_progress`, `failed` or `cancelling`.

    Raises:
        LeaseLostError: another server has the batch.
    """
    with database.transaction() as connection:
        row = repository.held_batch(connection, lease)
        repository.delete_items(connection, row.id)  # of an earlier try that was cut off
    errors: list[LineError] = []
    items: list[Item] = []
    total = 0
    for found in _input_of(database, row):
        if isinstance(found, LineError):
            errors.append(found)
        elif not errors:
            items.append(found)
            total += 1
        if len(items) >= ITEMS_A_TRANSACTION:
            _store_items(database, lease, items)
            items.clear()
    _store_items(database, lease, items)
    return _end_validation(database, lease, errors, total=total, now=clock())


def finish_batch(database: Database, lease: Lease, *, clock: Clock) -> str:
    """Write the output and the error file of a batch and end it; return its status.

    What has no result by now goes into the error file: the batch was cancelled, or its time is over.

    Raises:
        LeaseLostError: another server has the batch.
    """
    row, ending = _begin_to_finish(database, lease, now=clock())
    made = {
        column: _write_lines(database, row, states=states, ending=ending, name=name, now=clock())
        for column, states, name in (
            ("output_file_id", ("completed",), "output"),
            ("error_file_id", ("failed", "waiting"), "error"),
        )
    }
    with database.transaction() as connection:
        row = repository.held_batch(connection, lease)
        values: dict[str, Any] = {"status": ending, f"{ending}_at": clock(), "failed": row.total - row.completed}
        for column, (file_id, size_bytes) in made.items():
            if size_bytes:
                repository.show_file(connection, file_id, size_bytes=size_bytes)
                values[column] = file_id
            else:
                repository.delete_file(connection, file_id)
        repository.delete_items(connection, row.id)
        repository.update_batch(connection, row.id, **values, lease_token=None, leased_until=None)
    return ending


def _input_of(database: Database, batch: Row[Any]) -> Iterator[Item | LineError]:
    try:
        given = get_file(database, batch.input_file_id, owner=None)
        yield from read_items(read_file(database, given))
    except NotFoundError:
        message = f"The input file {batch.input_file_id} was deleted before it was read. Upload it again."
        yield LineError(None, "input_file_deleted", message, "input_file_id")


def _store_items(database: Database, lease: Lease, items: list[Item]) -> None:
    if not items:
        return
    rows = [{"batch_id": lease.batch_id, "state": "waiting", **item._asdict()} for item in items]
    with database.transaction() as connection:
        repository.held_batch(connection, lease)
        repository.insert_items(connection, rows)


def _end_validation(database: Database, lease: Lease, errors: list[LineError], *, total: int, now: datetime) -> str:
    with database.transaction() as connection:
        row = repository.held_batch(connection, lease)
        if row.status != "validating":
            return str(row.status)
        if errors:
            repository.delete_items(connection, row.id)
            told = [error._asdict() for error in errors]
            values = {"status": "failed", "failed_at": now, "errors": told, "lease_token": None, "leased_until": None}
        else:
            values = {"status": "in_progress", "in_progress_at": now, "total": total}
        repository.update_batch(connection, row.id, **values)
        return str(values["status"])


def _begin_to_finish(database: Database, lease: Lease, *, now: datetime) -> tuple[Row[Any], str]:
    """Return the batch and how it ends; from now on it cannot be cancelled."""
    with database.transaction() as connection:
        row = repository.held_batch(connection, lease)
        if row.status == "cancelling":
            if row.in_progress_at is None:  # its input was not read to the end
                repository.delete_items(connection, row.id)
            return row, "cancelled"
        ending = "expired" if repository.count_waiting(connection, row.id) else "completed"
        if row.status != "finalizing":
            repository.update_batch(connection, row.id, status="finalizing", finalizing_at=now)
        return row, ending


def _write_lines(
    database: Database, batch: Row[Any], *, states: tuple[str, ...], ending: str, name: str, now: datetime
) -> tuple[str, int]:
    """Write the results in `states` to a file that is not seen yet; return its id and its size in bytes."""

    def lines() -> Iterator[bytes]:
        after = 0
        while True:
            with database.read() as connection:
                page = repository.page_of_items(connection, batch.id, states=states, after=after, limit=ITEMS_A_PAGE)
            for item in page:
                yield _line(item, ending)
                after = item.number
            if not page:
                return

    return receive_file(
        database, lines(), owner=batch.owner, filename=f"{batch.id}_{name}.jsonl", purpose=OUTPUT, now=now,
        kept_seconds=batch.output_seconds,
    )  # fmt: skip


def _line(item: Row[Any], ending: str) -> bytes:
    """Return the result of one request as OpenAI writes it; the answer itself is copied as it is stored."""
    number = f"{item.batch_id.removeprefix('batch_')}_{item.number}"
    response: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    if item.state == "waiting":
        code, message = _NOT_RUN[ending]
        error = {"code": code, "message": message}
    else:
        body = orjson.Fragment(item.response)
        response = {"status_code": item.status_code, "request_id": f"req_{number}", "body": body}
    told = {"id": f"batch_req_{number}", "custom_id": item.custom_id, "response": response, "error": error}
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def encoded(value: object) -> str:
    """Return `value` as JSON in ASCII, so that half a character can be stored; raises ValueError for NaN."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
