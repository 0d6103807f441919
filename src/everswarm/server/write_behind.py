"""Rows that are stored a moment later, many in one transaction. Knows no table of its own.

A commit costs a sync of the disk, milliseconds; one more row in it costs microseconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from sqlalchemy import Connection, Table
from sqlalchemy.exc import (
    ArgumentError,
    CompileError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    StatementError,
)

from everswarm.errors import EverswarmError, UnavailableError
from everswarm.server.rows import PreparedInsert, Row

LINGER_SECONDS = 0.025  # how long the first row waits for company
RETRY_SECONDS = 1.0  # between two tries while the database cannot be written
MAX_PENDING_ROWS = 20_000  # tens of megabytes of chats

Entry: TypeAlias = tuple[Table, Row]

_NEVER_STORED = (
    StatementError,  # all that drivers say; `_may_pass` looks closer
    CompileError,
    ArgumentError,
    TypeError,
    ValueError,
    AttributeError,  # from a value of another type than its column
    LookupError,
    ArithmeticError,
    RecursionError,
)
_log = logging.getLogger(__name__)


class WriteBehind:
    """A queue of rows, and the thread that stores them. The thread starts with the first row."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        """`begin` opens a transaction that writes, and does not wait for this queue."""
        self.problem: EverswarmError | None = None  # why rows wait longer than they should
        self._begin = begin
        self._inserts = _Inserts()
        self._lock = threading.Lock()
        self._tried = threading.Condition(self._lock)
        self._work = threading.Event()  # rows wait, or a problem stands
        self._hurry = threading.Event()  # somebody waits for them
        self._entries: list[Entry] = []
        self._queued_rows = 0  # ever
        self._finished_rows = 0  # ever; stored or given up
        self._thread: threading.Thread | None = None
        self._closing = False

    @property
    def is_behind(self) -> bool:
        """Whether rows wait that are not stored yet."""
        return self._queued_rows != self._finished_rows

    def add(self, table: Table, row: Row) -> None:
        """Queue one row; raises `UnavailableError` when too many wait."""
        with self._lock:
            if self._queued_rows - self._finished_rows >= MAX_PENDING_ROWS:
                raise self._refusal()
            self._entries.append((table, row))
            self._queued_rows += 1
            if len(self._entries) == 1:
                self._wake()

    def wait(self) -> None:
        """Return when what is queued now is stored, or as soon as a try has failed."""
        with self._tried:
            wanted = self._queued_rows
            while self._finished_rows < wanted and self.problem is None:
                self._hurry.set()
                self._tried.wait()

    def close(self) -> None:
        """Store what waits, with one last try, and end the thread. A row that is added later starts another."""
        with self._lock:
            thread = self._thread
            if thread is None:
                return
            self._closing = True
            self._work.set()
            self._hurry.set()
        thread.join()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="write-behind", daemon=True)
            self._thread.start()
        self._work.set()

    def _refusal(self) -> UnavailableError:
        why = f" {self.problem}" if self.problem else ""
        return UnavailableError(
            f"{MAX_PENDING_ROWS:,} rows wait for the database, the most that may wait, and it does not keep up.{why} "
            "Send it again a little later."
        )

    def _run(self) -> None:
        over = False
        while not over:
            self._work.wait()
            self._hurry.wait(LINGER_SECONDS if self.problem is None else RETRY_SECONDS)
            with self._lock:
                self._hurry.clear()
                entries, self._entries = self._entries, []
            kept, problem = self._store(entries)
            over = self._conclude(len(entries), kept, problem)

    def _conclude(self, taken_rows: int, kept: list[Entry], problem: EverswarmError | None) -> bool:
        """Note what came of one try; return whether it was the last one."""
        with self._lock:
            self._entries[:0] = kept
            self._finished_rows += taken_rows - len(kept)
            if problem is not None and self.problem is None:
                _log.error("%d rows wait for the database, tried every second: %s", len(kept), problem)
            elif problem is None and self.problem is not None:
                _log.warning("the database can be written again")
            self.problem = problem
            if not self._entries and problem is None:
                self._work.clear()
            over = self._closing and (problem is not None or not self._entries)
            if over:
                self._end()
            elif self._closing:
                self._hurry.set()
            self._tried.notify_all()
        return over

    def _end(self) -> None:
        lost = self._queued_rows - self._finished_rows
        if lost:
            _log.error("%d rows were lost: %s", lost, self.problem)
        self._entries = []
        self._finished_rows = self._queued_rows
        self.problem, self._thread, self._closing = None, None, False
        self._work.clear()

    def _store(self, entries: list[Entry]) -> tuple[list[Entry], EverswarmError | None]:
        """Return what must be tried again, and why."""
        try:
            try:
                self._store_together(entries)
            except _NEVER_STORED as error:
                if _may_pass(error):
                    raise
                self._store_one_by_one(entries)
        except Exception as error:
            return entries, _explained(error)
        return [], None

    def _store_together(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        with self._begin() as connection:
            self._inserts.insert(connection, entries)

    def _store_one_by_one(self, entries: Sequence[Entry]) -> None:
        """Store all that can be, in the order in which it came; log what cannot be, by its table."""
        refused: list[tuple[Table, Exception]] = []
        with self._begin() as connection:
            for entry in entries:
                try:
                    with connection.begin_nested():
                        self._inserts.insert(connection, [entry])
                except _NEVER_STORED as error:
                    if _may_pass(error):
                        raise
                    refused.append((entry[0], error))
        for table, reason in refused:  # not its content: it is somebody's
            _log.error("a row of %r can never be stored and was dropped: %s", table.name, _cause(reason))


class _Inserts:
    """One prepared INSERT for each table and each set of columns."""

    def __init__(self) -> None:
        self._prepared: dict[tuple[Table, tuple[str, ...]], PreparedInsert] = {}

    def insert(self, connection: Connection, entries: Sequence[Entry]) -> None:
        """Insert all rows of `entries`, table by table in the order of their first rows."""
        tables: dict[Table, dict[tuple[str, ...], list[Row]]] = {}
        for table, row in entries:
            tables.setdefault(table, {}).setdefault(tuple(row), []).append(row)
        for table, shapes in tables.items():
            for names, rows in shapes.items():
                prepared = self._prepared.get((table, names))
                if prepared is None:
                    prepared = self._prepared[table, names] = PreparedInsert(table, names, connection.dialect)
                prepared.execute(connection, rows)


def _may_pass(error: Exception) -> bool:
    """Say whether the same rows may be stored later: the disk is full, the database is locked or away."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    says_what_is_wrong = getattr(error.orig, "sqlite_errorname", "") == "SQLITE_ERROR"  # no such table or column
    return isinstance(error, OperationalError | InterfaceError | InternalError) and not says_what_is_wrong


def _explained(error: Exception) -> EverswarmError:
    if isinstance(error, EverswarmError):
        return error
    return UnavailableError(
        f"The database cannot be written now ({_cause(error)}). What waits for it is tried again every second; "
        "whoever runs the server should see to the database."
    )


def _cause(error: Exception) -> str:
    """Return what went wrong, without the values of the row, which SQLAlchemy and Postgres add in further lines."""
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0]
