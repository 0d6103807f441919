"""SQL of files, batches and their items. Decides nothing, but who holds a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, and_, delete, func, or_, select, update

from everswarm.errors import ConflictError
from everswarm.server.batches.tables import batch_items, batches, file_pieces, files

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class Lease(NamedTuple):
    """The right of one run to work on one batch; `token` is the fence."""

    batch_id: str
    token: str


class LeaseLostError(ConflictError):
    """Another server has the batch by now."""


# --- files


def insert_file(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add a file."""
    connection.execute(files.insert().values(**row))


def insert_piece(connection: Connection, file_id: str, *, number: int, content: bytes) -> None:
    """Add one piece of a file."""
    connection.execute(file_pieces.insert().values(file_id=file_id, number=number, content=content))


def show_file(connection: Connection, file_id: str, *, size_bytes: int) -> None:
    """Let a file be seen: it is whole."""
    connection.execute(update(files).where(files.c.id == file_id).values(state="processed", size_bytes=size_bytes))


def find_file(connection: Connection, file_id: str, *, owner: str | None) -> Row[Any] | None:
    """Return a whole file of `owner`, or of anybody."""
    return connection.execute(_seen_files(owner).where(files.c.id == file_id)).one_or_none()


def find_piece(connection: Connection, file_id: str, *, number: int) -> bytes | None:
    """Return one piece of a file."""
    wanted = select(file_pieces.c.content).where(file_pieces.c.file_id == file_id, file_pieces.c.number == number)
    return connection.execute(wanted).scalar_one_or_none()


def page_of_files(
    connection: Connection, *, owner: str | None, purpose: str | None, after: str | None, limit: int, oldest_first: bool
) -> list[Row[Any]]:
    """Return whole files by age, beginning behind the file `after`."""
    wanted = _seen_files(owner)
    if purpose is not None:
        wanted = wanted.where(files.c.purpose == purpose)
    if after is not None:
        wanted = wanted.where(files.c.id > after if oldest_first else files.c.id < after)
    order = files.c.id if oldest_first else files.c.id.desc()
    return list(connection.execute(wanted.order_by(order).limit(limit)))


def bytes_of(connection: Connection, owner: str) -> int:
    """Return the size of all files of `owner`."""
    return int(connection.execute(select(func.sum(files.c.size_bytes)).where(files.c.owner == owner)).scalar() or 0)


def delete_file(connection: Connection, file_id: str) -> None:
    """Delete a file with its content."""
    connection.execute(delete(files).where(files.c.id == file_id))


def delete_files_before(connection: Connection, *, now: datetime, abandoned_before: datetime) -> int:
    """Delete files whose time is over, and those that never became whole; return how many there were."""
    abandoned = and_(files.c.state == "incoming", files.c.created_at < abandoned_before)
    return connection.execute(delete(files).where(or_(files.c.expires_at <= now, abandoned))).rowcount


# --- batches


def insert_batch(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add a batch."""
    connection.execute(batches.insert().values(**row))


def find_batch(connection: Connection, batch_id: str, *, owner: str | None, hold: bool = False) -> Row[Any] | None:
    """Return a batch of `owner`, or of anybody; with `hold` it stays as it is until commit."""
    wanted = select(batches).where(batches.c.id == batch_id)
    if owner is not None:
        wanted = wanted.where(batches.c.owner == owner)
    return connection.execute(wanted.with_for_update() if hold else wanted).one_or_none()


def page_of_batches(connection: Connection, *, owner: str | None, after: str | None, limit: int) -> list[Row[Any]]:
    """Return batches, the newest first, beginning behind the batch `after`."""
    wanted = select(batches)
    if owner is not None:
        wanted = wanted.where(batches.c.owner == owner)
    if after is not None:
        wanted = wanted.where(batches.c.id < after)
    return list(connection.execute(wanted.order_by(batches.c.id.desc()).limit(limit)))


def count_unfinished(connection: Connection, owner: str) -> int:
    """Return how many batches of `owner` have not ended."""
    wanted = select(func.count()).where(batches.c.owner == owner, batches.c.status.in_(UNFINISHED))
    return int(connection.execute(wanted.select_from(batches)).scalar_one())


def update_batch(connection: Connection, batch_id: str, **values: Any) -> None:
    """Set columns of one batch."""
    connection.execute(update(batches).where(batches.c.id == batch_id).values(**values))


# --- leases


def free_batches(connection: Connection, *, now: datetime, limit: int) -> list[str]:
    """Return unfinished batches that nobody holds, the oldest first."""
    wanted = select(batches.c.id).where(batches.c.status.in_(UNFINISHED), _is_free(now))
    return list(connection.execute(wanted.order_by(batches.c.id).limit(limit)).scalars())


def take_batch(connection: Connection, lease: Lease, *, now: datetime, until: datetime) -> Row[Any] | None:
    """Take a batch and return it; None when another was quicker."""
    free = and_(batches.c.id == lease.batch_id, batches.c.status.in_(UNFINISHED), _is_free(now))
    taken = connection.execute(update(batches).where(free).values(lease_token=lease.token, leased_until=until))
    return find_batch(connection, lease.batch_id, owner=None) if taken.rowcount else None


def renew_leases(connection: Connection, leases: Sequence[Lease], *, until: datetime) -> dict[str, str]:
    """Extend the leases that are still held; return the statuses of their batches by id."""
    held = _is_held(leases)
    connection.execute(update(batches).where(held).values(leased_until=until))
    return {row.id: row.status for row in connection.execute(select(batches.c.id, batches.c.status).where(held))}


def release_leases(connection: Connection, leases: Sequence[Lease]) -> None:
    """Let others take these batches at once."""
    connection.execute(update(batches).where(_is_held(leases)).values(lease_token=None, leased_until=None))


def held_batch(connection: Connection, lease: Lease) -> Row[Any]:
    """Return the batch, which stays as it is until commit.

    Raises:
        LeaseLostError: another has it by now.
    """
    row = find_batch(connection, lease.batch_id, owner=None, hold=True)
    if row is None or row.lease_token != lease.token:
        raise LeaseLostError(f"The batch {lease.batch_id} is another server's by now; this one leaves it.")
    return row


# --- items


def insert_items(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add requests of a batch."""
    connection.execute(batch_items.insert(), [dict(row) for row in rows])


def page_of_items(
    connection: Connection, batch_id: str, *, states: Sequence[str], after: int, limit: int
) -> list[Row[Any]]:
    """Return the items in one of `states`, in the order of their lines, behind the line `after`."""
    wanted = select(batch_items).where(
        batch_items.c.batch_id == batch_id, batch_items.c.number > after, batch_items.c.state.in_(states)
    )
    return list(connection.execute(wanted.order_by(batch_items.c.number).limit(limit)))


def count_waiting(connection: Connection, batch_id: str) -> int:
    """Return how many requests of a batch have no result."""
    wanted = select(func.count()).where(batch_items.c.batch_id == batch_id, batch_items.c.state == "waiting")
    return int(connection.execute(wanted.select_from(batch_items)).scalar_one())


def finish_item(connection: Connection, batch_id: str, number: int, *, state: str, **values: Any) -> None:
    """Store the result of a request, and count it; a second result changes nothing."""
    waiting = and_(batch_items.c.batch_id == batch_id, batch_items.c.number == number, batch_items.c.state == "waiting")
    if connection.execute(update(batch_items).where(waiting).values(state=state, **values)).rowcount:
        update_batch(connection, batch_id, **{state: batches.c[state] + 1})


def delete_items(connection: Connection, batch_id: str) -> None:
    """Delete the requests of a batch and their results."""
    connection.execute(delete(batch_items).where(batch_items.c.batch_id == batch_id))


def _seen_files(owner: str | None) -> Select[Any]:
    wanted = select(files).where(files.c.state == "processed")
    return wanted if owner is None else wanted.where(files.c.owner == owner)


def _is_free(now: datetime) -> Any:
    return or_(batches.c.leased_until.is_(None), batches.c.leased_until <= now)


def _is_held(leases: Sequence[Lease]) -> Any:
    ids, tokens = [lease.batch_id for lease in leases], [lease.token for lease in leases]
    return and_(batches.c.id.in_(ids), batches.c.lease_token.in_(tokens))
