"""The ledgers in Postgres, for several hosts: a row a key, locked while it is changed; the database's clock counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from everswarm.errors import EverswarmError, NoSpaceError, UnavailableError
from everswarm.server.gateway.quota import MICROSECONDS
from everswarm.server.gateway.quota_ledger import Ledger, load_ledger

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import SQLAlchemyError

    from everswarm.server.gateway.quota_store import Change

THREADS = 4  # changes of different keys side by side, a connection each
CONNECT_SECONDS = 5
LOCK_SECONDS = 5  # how long a change waits for other processes
DOWN_SECONDS = 1.0  # after a failure nothing is tried for so long, or all would wait one behind the other
FORGET_EVERY_SECONDS = 3_600.0
FORGET_SECONDS = 32 * 86_400.0  # after the last change; longer than any window

_TABLE_LOCK = 7_305_218_440  # any number that no other part uses
# half of each page stays free, so that a new version of a row needs no new entry in the index
_TABLE = """CREATE TABLE IF NOT EXISTS gateway_quotas
    (key TEXT PRIMARY KEY, state BYTEA NOT NULL, changed_at_us BIGINT NOT NULL) WITH (fillfactor = 50)"""
_CLOCK = f"(extract(epoch FROM clock_timestamp()) * {MICROSECONDS})::bigint"
_SELECT = f"SELECT state, {_CLOCK} FROM gateway_quotas WHERE key = %s"
_INSERT = f"INSERT INTO gateway_quotas VALUES (%s, %s, {_CLOCK}) ON CONFLICT DO NOTHING"
_UPDATE = "UPDATE gateway_quotas SET state = %s, changed_at_us = %s WHERE key = %s"
_FORGET = f"DELETE FROM gateway_quotas WHERE changed_at_us < {_CLOCK} - %s"

T = TypeVar("T")


class PostgresLedgers:
    """`LedgerFile` over Postgres. Connects at the first use."""

    def __init__(self, url: str, *, clock: Callable[[], float] | None, lease_us: int) -> None:
        self._url = url
        self._clock = clock
        self._lease_us = lease_us
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="quotas")
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        self._failure: EverswarmError | None = None
        self._down_until = 0.0  # monotonic
        self._forget_at = 0.0  # monotonic

    def change_now(self, changes: Sequence[Change]) -> bool:
        """See `LedgerFile`. Never: the answer of a database takes time."""
        return not changes

    async def change(self, change: Change) -> None:
        """See `LedgerFile`."""

        def transact(connection: Connection) -> None:
            ledger = self._lock(connection, change.key)
            change.work(ledger)
            if ledger.changed:
                connection.exec_driver_sql(_UPDATE, (ledger.save(), ledger.now_us, change.key))

        await self._in_thread(transact, lambda _: change.committed())

    async def read(self, key: str, work: Callable[[Ledger], T]) -> T:
        """See `LedgerFile`."""

        def look(connection: Connection) -> T:
            row = connection.exec_driver_sql(_SELECT, (key,)).first()
            if row is None:
                return work(self._load(None, connection.exec_driver_sql(f"SELECT {_CLOCK}").scalar_one()))
            return work(self._load(row[0], row[1]))

        return await self._in_thread(look)

    async def upkeep(self) -> None:
        """Forget what nobody used for long."""
        if time.monotonic() < self._forget_at:
            return
        forget = (round(FORGET_SECONDS * MICROSECONDS),)
        await self._in_thread(lambda connection: connection.exec_driver_sql(_FORGET, forget).rowcount)
        self._forget_at = time.monotonic() + FORGET_EVERY_SECONDS

    async def close(self) -> None:
        """See `LedgerFile`."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._engine is not None:
            self._engine.dispose()

    def _lock(self, connection: Connection, key: str) -> Ledger:
        """Load the ledger of `key` for us alone. Its clock may be read before we wait: that only counts more."""
        while True:
            row = connection.exec_driver_sql(_SELECT + " FOR UPDATE", (key,)).first()
            if row is not None:
                return self._load(row[0], row[1])
            empty = Ledger(None, now_us=0, lease_us=0).save()
            connection.exec_driver_sql(_INSERT, (key, empty))

    def _load(self, state: bytes | None, database_us: int) -> Ledger:
        now_us = database_us if self._clock is None else round(self._clock() * MICROSECONDS)
        return load_ledger(state, now_us=now_us, lease_us=self._lease_us)

    async def _in_thread(self, transact: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Run one transaction to its end, even if we are cancelled meanwhile: what is stored must be known."""
        if self._failure is not None and time.monotonic() < self._down_until:
            raise self._failure
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._run, transact)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError as error:
                cancelled = error
        result = running.result()
        if committed is not None:
            committed(result)
        if cancelled is not None:
            raise cancelled
        return result

    def _run(self, transact: Callable[[Connection], T]) -> T:
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            try:
                return self._transact(transact)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return self._transact(transact)  # the database was started again; at worst a call counts twice
        except SQLAlchemyError as error:
            self._failure, self._down_until = _explain(error), time.monotonic() + DOWN_SECONDS
            raise self._failure from error

    def _transact(self, transact: Callable[[Connection], T]) -> T:
        with self._open().begin() as connection:
            return transact(connection)

    def _open(self) -> Engine:
        with self._opening:
            if self._engine is None:
                engine = _make_engine(self._url)
                with engine.begin() as connection:
                    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_TABLE_LOCK,))
                    connection.exec_driver_sql(_TABLE)
                self._engine = engine
            return self._engine


def _make_engine(url: str) -> Engine:
    from sqlalchemy import create_engine, event, make_url

    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=THREADS,
        connect_args={"connect_timeout": CONNECT_SECONDS},
    )
    event.listen(engine, "connect", _limit_waiting)
    return engine


def _limit_waiting(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    connection.commit()


def _explain(error: SQLAlchemyError) -> EverswarmError:
    original = getattr(error, "orig", None)
    if getattr(original, "sqlstate", None) == "53100":
        return NoSpaceError(
            "The disk of the database that holds the quotas is full, so no request can be counted and none is sent. "
            "Free some space and send it again."
        )
    lines = str(original or type(error).__name__).splitlines()
    return UnavailableError(
        f"The quotas in Postgres cannot be reached, so the request was not sent: {lines[0] if lines else 'no answer'}. "
        "Check EVERSWARM_DATABASE_URL and the database, and send it again."
    )
