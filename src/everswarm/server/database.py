"""The database: one transaction a request, the same code on SQLite and Postgres. Knows no table of its own.

Every room declares its tables in `tables.py` on `metadata`; `migrations` brings a stored database up to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.types import TypeDecorator

from everswarm.errors import ConfigurationError, EverswarmError, NoSpaceError, UnavailableError
from everswarm.server.home import create_private_file

BUSY_TIMEOUT_MILLISECONDS = 30_000  # how long a writer waits for another before it gives up
POOL_SIZE = 8  # connections kept open
POOL_OVERFLOW = 40  # more than that under load; the web framework runs up to 40 threads

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: aware, in UTC, in and out. A naive one is refused, because nobody knows which moment it is."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return `value` as the driver stores it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; store datetime.now(UTC)")
        in_utc = value.astimezone(UTC)
        return in_utc.replace(tzinfo=None) if dialect.name == "sqlite" else in_utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored moment, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Database:
    """All state that is not a file. Safe to use from many threads; do not nest transactions in one thread."""

    def __init__(self, url: str) -> None:
        """Open `url`, such as `sqlite:////home/me/.everswarm/everswarm.sqlite` or a Postgres URL."""
        self.url = url
        self.engine = _make_engine(url)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Write: all of the block or nothing of it. On SQLite it takes the write lock at once, so it never fails late.

        Raises:
            NoSpaceError: the disk is full; nothing was written.
            UnavailableError: another writer held the database for the whole of the busy timeout.
        """
        with (
            _errors_explained(),
            self.engine.connect().execution_options(everswarm_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read one consistent state; a write in here is an error."""
        with _errors_explained(), self.engine.connect() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the stored schema up to this version of everswarm; cheap when it is there already."""
        from everswarm.server.migrations.upgrade import upgrade_database

        with _errors_explained():
            upgrade_database(self.engine)

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()


def insert_ignore(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the `rows` whose keys are not taken yet; return how many were really inserted.

    All rows have the same columns. A conflict on any unique column means 'is there already'.
    """
    if not rows:
        return 0
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    return connection.execute(statement, [dict(row) for row in rows]).rowcount


def _database_of(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


DatabaseDep = Annotated[Database, Depends(_database_of)]


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(
            f"The database URL {url!r} names no file, and each thread would see its own empty database. "
            "Name a file, such as sqlite:////home/me/everswarm.sqlite."
        )
    create_private_file(Path(parsed.database))
    engine = create_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # sqlite3 would begin by itself, and too late; `_begin_sqlite` does it
    dbapi_connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    dbapi_connection.execute("PRAGMA journal_mode=WAL")
    dbapi_connection.execute("PRAGMA synchronous=FULL")  # an acknowledged write survives a power cut
    dbapi_connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    writes = bool(connection.get_execution_options().get("everswarm_write"))
    raw: Any = connection.connection.dbapi_connection
    raw.execute(f"PRAGMA query_only={0 if writes else 1}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Turn the driver's words for a full disk and a busy database into ours."""
    try:
        yield
    except OperationalError as error:
        explained = _explain(error)
        if explained is None:
            raise
        raise explained from error


def _explain(error: OperationalError) -> EverswarmError | None:
    name = getattr(error.orig, "sqlite_errorname", "")
    text = str(error.orig)
    if name in {"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"} or "database or disk is full" in text:
        return NoSpaceError(
            "The disk that holds the database is full; nothing of this request was written. Free some space and send "
            "it again."
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or "database is locked" in text:
        return UnavailableError(
            f"The database was busy for {BUSY_TIMEOUT_MILLISECONDS // 1000} s; nothing of this request was written. "
            "Send it again."
        )
    return None
