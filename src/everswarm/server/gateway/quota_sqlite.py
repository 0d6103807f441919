"""The ledgers in an SQLite file of their own, for the processes of one machine. Not for network file systems.

A change costs a few ten microseconds, so it is done on the event loop; while another process is at it, we wait without
blocking the loop. The file is not flushed at each commit, because what a power cut takes is at most one window old;
for the same reason a file that is damaged is begun anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from everswarm.errors import EverswarmError, NoSpaceError, UnavailableError
from everswarm.server.gateway.quota import MICROSECONDS
from everswarm.server.gateway.quota_ledger import Ledger, load_ledger
from everswarm.server.home import create_private_file

if TYPE_CHECKING:
    from everswarm.server.gateway.quota_store import Change

FILE_NAME = "gateway.sqlite"
BUSY_SECONDS = 5.0  # how long a change waits for other processes
PATIENCE_SECONDS = 0.001  # between two tries, at most
OPEN_SECONDS = 10.0  # how long an opening waits for another one
CHECKPOINT_EVERY = 4096  # commits; each adds some 4 kB to the log
LARGEST_LOG_BYTES = 8 * 1024 * 1024
FORGET_SECONDS = 32 * 86_400.0  # after the last change; longer than any window

_TABLE = """CREATE TABLE IF NOT EXISTS quotas
    (key TEXT PRIMARY KEY, state BLOB NOT NULL, changed_at_us INTEGER NOT NULL)"""
_SELECT = "SELECT state FROM quotas WHERE key = ?"
_INSERT = "INSERT INTO quotas (state, changed_at_us, key) VALUES (?, ?, ?)"
_UPDATE = "UPDATE quotas SET state = ?, changed_at_us = ? WHERE key = ?"
_FORGET = "DELETE FROM quotas WHERE changed_at_us < ?"

T = TypeVar("T")
log = logging.getLogger(__name__)


class SqliteLedgers:
    """`LedgerFile` over SQLite."""

    def __init__(self, home: Path, *, clock: Callable[[], float], lease_us: int) -> None:
        """Open the file, or make it; raises as `open_quota_store` says."""
        self._path = home / FILE_NAME
        self._clock = clock
        self._lease_us = lease_us
        self._commits = 0
        self._tidying: asyncio.Future[None] | None = None
        create_private_file(self._path)
        try:
            self._presence = _open_alone(self._path)
            self._connection = _connect(self._path)
        except sqlite3.Error as error:
            raise _explain(error) from error
        self._execute = self._connection.cursor().execute

    def change_now(self, changes: Sequence[Change]) -> bool:
        """See `LedgerFile`. False while another process is at it."""
        try:
            self._change_once(changes)
        except sqlite3.Error as error:
            if not _is_busy(error):
                raise _explain(error) from error
            return False
        return True

    async def change(self, change: Change) -> None:
        """See `LedgerFile`. The loop does nothing else between the beginning and `committed`."""
        await self._patiently(lambda: self._change_once((change,)))

    async def read(self, key: str, work: Callable[[Ledger], T]) -> T:
        """See `LedgerFile`."""
        return await self._patiently(lambda: work(self._load(self._select(key))))

    async def upkeep(self) -> None:
        """Move the log into the file, and forget what nobody used for long."""
        forget = (self._now_us() - round(FORGET_SECONDS * MICROSECONDS),)
        await self._patiently(lambda: self._execute(_FORGET, forget))
        await asyncio.shield(self._tidy_soon())

    async def close(self) -> None:
        """See `LedgerFile`."""
        if self._tidying is not None:
            await self._tidying
        self._connection.close()
        self._presence.close()

    def _change_once(self, changes: Sequence[Change]) -> None:
        execute = self._execute
        execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                state = self._select(change.key)
                ledger = self._load(state)
                change.work(ledger)
                if ledger.changed:
                    execute(_INSERT if state is None else _UPDATE, (ledger.save(), ledger.now_us, change.key))
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        for change in changes:
            change.committed()
        self._commits += 1
        if self._commits >= CHECKPOINT_EVERY:
            self._tidy_soon()

    async def _patiently(self, attempt: Callable[[], T]) -> T:
        """Return what `attempt` does, as soon as no other process is at it.

        Raises:
            UnavailableError: others were at it for BUSY_SECONDS, or the file is damaged.
            NoSpaceError: the disk is full.
        """
        deadline: float | None = None
        while True:
            try:
                return attempt()
            except sqlite3.Error as error:
                deadline = deadline or time.monotonic() + BUSY_SECONDS
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise _explain(error) from error
            await asyncio.sleep(random.uniform(0, PATIENCE_SECONDS))

    def _select(self, key: str) -> bytes | None:
        row: tuple[bytes] | None = self._execute(_SELECT, (key,)).fetchone()
        return None if row is None else row[0]

    def _load(self, state: bytes | None) -> Ledger:
        return load_ledger(state, now_us=self._now_us(), lease_us=self._lease_us)

    def _now_us(self) -> int:
        return round(self._clock() * MICROSECONDS)

    def _tidy_soon(self) -> asyncio.Future[None]:
        if self._tidying is None or self._tidying.done():
            self._commits = 0
            self._tidying = asyncio.get_running_loop().run_in_executor(None, _tidy, self._path)
        return self._tidying


def _open_alone(path: Path) -> sqlite3.Connection:
    """Check the file if no other process has it open; return what shows that we have, until it is closed.

    A damaged file is moved aside only then: others would go on with the old one, and each spend the quota once.
    """
    lock = path.with_suffix(".lock")
    create_private_file(lock)
    presence = sqlite3.connect(lock, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        presence.execute("BEGIN EXCLUSIVE")
        if complaint := _complaint(path):
            _move_aside(path, complaint)
        _connect(path).close()
        presence.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise
    presence.execute(f"PRAGMA busy_timeout={round(OPEN_SECONDS * 1000)}")
    presence.execute("BEGIN")
    presence.execute("SELECT count(*) FROM sqlite_master").fetchone()  # takes the shared lock
    return presence


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=OPEN_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")  # it would block the loop; `_tidy` does it in a thread
    connection.execute(_TABLE)
    connection.execute("PRAGMA busy_timeout=0")  # SQLite would sleep on the loop
    return connection


def _complaint(path: Path) -> str | None:
    """Return what is wrong with the file; None if it is whole."""
    try:
        with closing(sqlite3.connect(path, timeout=OPEN_SECONDS)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            return None if found == "ok" else found
    except sqlite3.DatabaseError as error:
        if _name(error).startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return str(error)
        raise


def _move_aside(path: Path, complaint: str) -> None:
    log.warning("%s is damaged (%s). It is kept as %s.damaged and begun anew.", path, complaint, path.name)
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.replace(path.with_name(f"{path.name}.damaged{suffix}"))
    create_private_file(path)


def _tidy(path: Path) -> None:
    """Move the log into the file, and cut it when it is long."""
    with closing(sqlite3.connect(path, timeout=1.0)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            wal = path.with_name(path.name + "-wal")
            if wal.exists() and wal.stat().st_size > LARGEST_LOG_BYTES:
                connection.execute(
                    "PRAGMA wal_checkpoint(TRUNCATE)"
                ).fetchone()  # writers wait for the little that is left
        except sqlite3.Error as error:
            log.warning("The log of %s could not be moved into it: %s", path, error)


def _explain(error: sqlite3.Error) -> EverswarmError:
    if _name(error) in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"}:
        return NoSpaceError(
            "The disk that holds the quotas is full, so no request can be counted and none is sent. "
            "Free some space and send it again."
        )
    if _is_busy(error):
        return UnavailableError(
            f"The quotas were busy for {BUSY_SECONDS:.0f} s, so the request was not sent. Send it again."
        )
    return UnavailableError(
        f"The quotas in {FILE_NAME} cannot be read ({error}), so the request was not sent. Start everswarm again: a "
        "damaged file is then begun anew.",
        retry_after_seconds=60,
    )


def _is_busy(error: sqlite3.Error) -> bool:
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def _name(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", ""))
