"""Files: taken in piece by piece, seen when they are whole, deleted with all their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row

from everswarm.errors import BadRequestError, NotFoundError, TooLargeError
from everswarm.identifiers import new_id
from everswarm.server.batches import repository
from everswarm.server.database import Database

UPLOAD_PATH = "/v1/files"
MAX_FILE_BYTES = 100 * 1024 * 1024  # of one upload
UPLOAD_BODY_BYTES = MAX_FILE_BYTES + 64 * 1024  # and what multipart adds
OWNER_LIMIT_BYTES = 2 * 1024**3  # of all files that one key keeps
PIECE_BYTES = 1024 * 1024  # of a row; each has its transaction, so that others may write in between
FILENAME_CHARACTERS = 200
ABANDONED_SECONDS = 24 * 3600  # after which a file that never became whole is deleted

INPUT, OUTPUT = "batch", "batch_output"  # purposes


def upload_file(
    database: Database, chunks: Iterable[bytes], *, owner: str, filename: str, now: datetime, kept_seconds: int
) -> Row[Any]:
    """Store what a person sent and return its row.

    Raises:
        BadRequestError: it is empty.
        TooLargeError: it, or all of the owner's files together, are over the limit.
    """
    with database.read() as connection:
        kept_bytes = repository.bytes_of(connection, owner)
    file_id, size_bytes = receive_file(
        database, _limited(chunks, kept_bytes), owner=owner, filename=filename, purpose=INPUT, now=now,
        kept_seconds=kept_seconds,
    )  # fmt: skip
    with database.transaction() as connection:
        if not size_bytes:
            repository.delete_file(connection, file_id)
        repository.show_file(connection, file_id, size_bytes=size_bytes)
        row = repository.find_file(connection, file_id, owner=owner)
    if row is None:
        raise BadRequestError("The file is empty. Send JSON lines, one request each; docs/guides/batches.md shows one.")
    return row


def receive_file(
    database: Database,
    chunks: Iterable[bytes],
    *,
    owner: str,
    filename: str,
    purpose: str,
    now: datetime,
    kept_seconds: int,
) -> tuple[str, int]:
    """Store `chunks` as a file that nobody sees before `show_file`; return its id and its size in bytes."""
    file_id = f"file-{new_id().replace('-', '')}"
    row = {
        "id": file_id,
        "owner": owner,
        "filename": _printable(filename),
        "purpose": purpose,
        "state": "incoming",
        "size_bytes": 0,
        "created_at": now,
        "expires_at": now + timedelta(seconds=kept_seconds),
    }
    with database.transaction() as connection:
        repository.insert_file(connection, row)
    size_bytes = 0
    try:
        for number, piece in enumerate(_pieces(chunks)):
            size_bytes += len(piece)
            with database.transaction() as connection:
                repository.insert_piece(connection, file_id, number=number, content=piece)
    except BaseException:
        with database.transaction() as connection:
            repository.delete_file(connection, file_id)
        raise
    return file_id, size_bytes


def get_file(database: Database, file_id: str, *, owner: str | None) -> Row[Any]:
    """Return one file of `owner`, or of anybody where that is None.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.read() as connection:
        row = repository.find_file(connection, file_id, owner=owner)
    if row is None:
        raise no_such_file(file_id)
    return row


def read_file(database: Database, row: Row[Any]) -> Iterator[bytes]:
    """Yield the content, piece by piece.

    Raises:
        NotFoundError: it was deleted meanwhile.
    """
    for number in range(-(-row.size_bytes // PIECE_BYTES)):
        with database.read() as connection:
            piece = repository.find_piece(connection, row.id, number=number)
        if piece is None:
            raise no_such_file(row.id)
        yield piece


def list_files(
    database: Database, *, owner: str | None, purpose: str | None, after: str | None, limit: int, oldest_first: bool
) -> tuple[list[Row[Any]], bool]:
    """Return one page, and whether there are more."""
    with database.read() as connection:
        rows = repository.page_of_files(
            connection, owner=owner, purpose=purpose, after=after, limit=limit + 1, oldest_first=oldest_first
        )
    return rows[:limit], len(rows) > limit


def delete_file(database: Database, file_id: str, *, owner: str | None) -> None:
    """Delete a file and its content at once.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.transaction() as connection:
        if repository.find_file(connection, file_id, owner=owner) is None:
            raise no_such_file(file_id)
        repository.delete_file(connection, file_id)


def delete_old_files(database: Database, *, now: datetime) -> int:
    """Delete files whose time is over, and what a killed server left half-written; return how many there were."""
    with database.transaction() as connection:
        return repository.delete_files_before(
            connection, now=now, abandoned_before=now - timedelta(seconds=ABANDONED_SECONDS)
        )


def no_such_file(file_id: str) -> NotFoundError:
    """Return the error for a file that is not there, or that its owner alone may see."""
    return NotFoundError(f"There is no file {_printable(file_id)!r}. GET /v1/files lists yours.")


def _limited(chunks: Iterable[bytes], kept_bytes: int) -> Iterator[bytes]:
    size_bytes = 0
    for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > MAX_FILE_BYTES:
            raise TooLargeError(
                f"The file has more than {MAX_FILE_BYTES:,} bytes, the most that one may have. Send it in parts."
            )
        if kept_bytes + size_bytes > OWNER_LIMIT_BYTES:
            raise TooLargeError(
                f"With this one your files would have more than {OWNER_LIMIT_BYTES:,} bytes, the most that one key "
                "may keep. Delete some: GET /v1/files lists them, DELETE /v1/files/{id} deletes one."
            )
        yield chunk


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in pieces of one size; only the last is shorter."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= PIECE_BYTES:
            yield bytes(waiting[:PIECE_BYTES])
            del waiting[:PIECE_BYTES]
    if waiting:
        yield bytes(waiting)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name[:FILENAME_CHARACTERS])
