"""The file of the answer cache, and the filter that knows what is surely not in it. Decides nothing."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from everswarm.errors import EverswarmError, UnavailableError
from everswarm.server.home import create_private_file

SCHEMA_VERSION = 1  # a file of another one is begun anew
EVICTED_SHARE = 512  # one part in so many goes at once; small, because the event loop waits for it
OPEN_PAUSE_SECONDS = 0.01
OPEN_WAIT_SECONDS = 1.0  # another process may be creating the file
ERASE_WAIT_SECONDS = 5.0  # an erasure waits for the writer; a request never does
LOG_SECONDS = 60.0
ROWS_TOGETHER = 64  # in one statement

# Rows are in the order of their last use: a row that is used again is moved to the end. So the oldest are the first
# pages of the table, which become free as a whole when they are evicted.
_SCHEMA = (
    "DROP TABLE IF EXISTS answers",
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, user TEXT NOT NULL, "
    "created REAL NOT NULL, used REAL NOT NULL, about BLOB NOT NULL, completion BLOB NOT NULL)",
    "CREATE INDEX answers_user ON answers (user)",
    f"PRAGMA user_version={SCHEMA_VERSION}",
)
_FIND = "SELECT user, created, used, about, completion FROM answers WHERE key = ?"
_KEEP = "INSERT OR REPLACE INTO answers (key, user, created, used, about, completion) VALUES "
_VALUES = "(?, ?, ?, ?, ?, ?)"
_TOUCH = "UPDATE answers SET id = (SELECT max(id) FROM answers) + 1, used = ? WHERE key = ?"
_OLDEST = "SELECT min(id) FROM answers"
_NEWEST = "SELECT max(id) FROM answers"  # a query of its own each: together they would read the whole table
_EVICT = f"DELETE FROM answers WHERE id <= ({_OLDEST}) + (({_NEWEST}) - ({_OLDEST})) / ?"
_EXPIRE = "DELETE FROM answers WHERE id IN (SELECT id FROM answers ORDER BY id LIMIT 1000) AND used < ?"
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})  # the last: other tables
_log = logging.getLogger(__name__)


class CacheStats(NamedTuple):
    """How full a cache is."""

    entries: int
    size_bytes: int  # on disk, of what is in use


class CacheRow(NamedTuple):
    """One answer as it is stored; moments are seconds since 1970."""

    user: str
    created: float
    used: float
    about: bytes
    completion: bytes


class KeyFilter:
    """Says that a key is surely not in the file, without asking it (Bloom 1970). Of 4 million bits, two a key."""

    BITS = 1 << 22
    FULL = 1 << 19  # keys, with which one in twenty that is not there is asked for

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._bytes = bytearray(self.BITS // 8)
        self.added = 0
        for key in keys:
            self.add(key)

    def add(self, key: bytes) -> None:
        """Note that `key` is there."""
        self.added += 1
        for number in self._numbers(key):
            self._bytes[number >> 3] |= 1 << (number & 7)

    def may_have(self, key: bytes) -> bool:
        """Say whether `key` may be there; False is certain."""
        one, two = self._numbers(key)
        return bool(self._bytes[one >> 3] >> (one & 7) & 1 and self._bytes[two >> 3] >> (two & 7) & 1)

    def _numbers(self, key: bytes) -> tuple[int, int]:
        """Return two bits; a key is a hash, so any part of it is as good as another."""
        both = int.from_bytes(key[:6], "big")
        return both & (self.BITS - 1), both >> 24 & (self.BITS - 1)


class AnswerFile:
    """The SQLite file. What goes wrong is logged and means 'nothing found', 'not kept'; only `erase` raises."""

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._connection: sqlite3.Connection | None = None
        self._inode: int | None = None
        self._filter = KeyFilter(())
        self._log_at = 0.0  # monotonic

    @property
    def is_open(self) -> bool:
        """Whether anything can be kept."""
        return self._connection is not None

    def look(self) -> None:
        """Open the file where it is not open, or is no longer the one of that name."""
        if self._connection is not None and _inode(self._path) != self._inode:
            self.close()
        if self._connection is None:
            self._open(may_remove=True)

    def find(self, key: bytes) -> CacheRow | None:
        """Return the row of `key`."""
        if self._connection is None or not self._filter.may_have(key):
            return None
        try:
            row = self._connection.execute(_FIND, (key,)).fetchone()
        except sqlite3.Error as error:
            self._cope(error)
            return None
        return None if row is None else CacheRow._make(row)

    def write(
        self, rows: Mapping[bytes, CacheRow], touched: Collection[bytes], *, now: float, expired_before: float | None
    ) -> bool:
        """Write all in one transaction and evict; return False where another process writes just now."""
        connection = self._connection
        if connection is None or not (rows or touched or expired_before is not None):
            return True
        for key in list(rows):
            self._filter.add(key)
        if self._filter.added > KeyFilter.FULL:
            self._filter = KeyFilter(_keys(connection))
        try:
            with _transaction(connection):
                _keep(connection, list(rows.items()))
                connection.executemany(_TOUCH, [(now, key) for key in touched])
                if expired_before is not None:
                    connection.execute(_EXPIRE, (expired_before,))
                while _used_bytes(connection) > self._size_bytes:
                    if not connection.execute(_EVICT, (EVICTED_SHARE,)).rowcount:
                        break
        except sqlite3.Error as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                return False
            self._cope(error)
        return True

    def stats(self) -> CacheStats:
        """Return how full it is."""
        if self._connection is None:
            return CacheStats(0, 0)
        try:
            [entries] = self._connection.execute("SELECT count(*) FROM answers").fetchone()
            return CacheStats(entries, _used_bytes(self._connection))
        except sqlite3.Error as error:
            self._cope(error)
            return CacheStats(0, 0)

    def erase(self, statement: str, values: Sequence[str], let_go: Callable[[], None]) -> None:
        """Run `statement` over a connection of its own, so that any thread may; `let_go` is called while it holds."""
        try:
            with contextlib.closing(_connect(self._path, wait_seconds=ERASE_WAIT_SECONDS)) as connection:
                with _transaction(connection):
                    let_go()
                    connection.execute(statement, values)
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log has the old pages
        except (sqlite3.Error, EverswarmError) as error:
            let_go()
            try:
                _remove(self._path)
            except OSError:
                raise UnavailableError(
                    f"The answers kept in {self._path} could not be erased: {error}. "
                    "Stop the server, remove that file and start again."
                ) from error

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _open(self, *, may_remove: bool) -> None:
        try:
            connection = _connect(self._path, wait_seconds=OPEN_WAIT_SECONDS)
            is_too_large = _used_bytes(connection) > 2 * self._size_bytes
            self._filter = KeyFilter(_keys(connection))
            connection.execute("PRAGMA busy_timeout=0")  # from here on nobody waits for another process
        except (sqlite3.Error, EverswarmError) as error:
            self._log(error)
            if may_remove and _code(error) in _DAMAGED:
                self._begin_anew()
            return
        self._connection = connection
        self._inode = _inode(self._path)
        if may_remove and is_too_large:  # the limit was lowered, and files do not shrink
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.close()
        try:
            _remove(self._path)
        except OSError as error:
            self._log(error)
        else:
            self._open(may_remove=False)

    def _cope(self, error: sqlite3.Error) -> None:
        code = _code(error)
        if code is None:  # not of the file: our own mistake
            raise error
        self._log(error)
        if code in _DAMAGED:
            self._begin_anew()

    def _log(self, error: Exception) -> None:
        if time.monotonic() >= self._log_at:
            self._log_at = time.monotonic() + LOG_SECONDS
            _log.warning("answers are not kept in %s for now: %s", self._path, error)


def _connect(path: Path, *, wait_seconds: float) -> sqlite3.Connection:
    """Return a connection to the file at `path`, with its table; raises as `_connect_once`.

    SQLite itself does not wait for a process that is making the file a WAL file, whatever its timeout says.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return _connect_once(path, wait_seconds=wait_seconds)
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(OPEN_PAUSE_SECONDS)


def _connect_once(path: Path, *, wait_seconds: float) -> sqlite3.Connection:
    """Return a connection to the file at `path`, with its table.

    Raises:
        ConfigurationError: the file cannot be made.
        sqlite3.Error: it cannot be read, is no such file, or another process is busy with it for too long.
    """
    create_private_file(path)
    connection = sqlite3.connect(path, timeout=wait_seconds, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")  # a lost cache is no loss
        connection.execute("PRAGMA secure_delete=ON")  # what was erased is not left in free pages
        connection.execute("PRAGMA cache_size=-1024")  # KiB
        connection.execute("PRAGMA wal_autocheckpoint=250")  # pages; a little often, because the event loop waits
        connection.execute("PRAGMA journal_size_limit=4194304")
        if _version(connection) != SCHEMA_VERSION:
            with _transaction(connection):
                if _version(connection) != SCHEMA_VERSION:  # another process may have begun it anew by now
                    for statement in _SCHEMA:
                        connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # some failures have rolled back already
            connection.execute("ROLLBACK")
        raise


def _keep(connection: sqlite3.Connection, rows: Sequence[tuple[bytes, CacheRow]]) -> None:
    """Insert many rows in one statement: between two statements another thread takes over, which costs more."""
    for start in range(0, len(rows), ROWS_TOGETHER):
        batch = rows[start : start + ROWS_TOGETHER]
        values = [value for key, row in batch for value in (key, *row)]
        connection.execute(_KEEP + ", ".join([_VALUES] * len(batch)), values)


def _keys(connection: sqlite3.Connection) -> Iterator[bytes]:
    for (key,) in connection.execute("SELECT key FROM answers"):
        yield key


def _version(connection: sqlite3.Connection) -> int:
    [version] = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _used_bytes(connection: sqlite3.Connection) -> int:
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    [free] = connection.execute("PRAGMA freelist_count").fetchone()
    [size] = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def _code(error: Exception) -> int | None:
    """Return SQLite's primary result code."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
