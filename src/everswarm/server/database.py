"""The database: one transaction a request, the same code on SQLite and Postgres. Knows no table of its own.

Every room declares its tables in `tables.py` on `metadata`; `migrations` brings a stored database up to them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import Depends, Request
from sqlalchemy import (
    URL,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError
from sqlalchemy.types import TypeDecorator

from everswarm.errors import ConfigurationError, EverswarmError, MissingExtraError
from everswarm.server.database_errors import cannot_be_used, errors_explained, values_explained
from everswarm.server.home import create_private_file
from everswarm.server.sealing import KEY_NAME, Mask, Seal, SealSource, give_seal
from everswarm.server.write_behind import WriteBehind

BUSY_TIMEOUT_MILLISECONDS = 30_000  # how long a writer waits for another before it gives up
POOL_SIZE = 8  # connections kept open
POOL_OVERFLOW = 40  # more than that under load; the web framework runs up to 40 threads
CONNECT_TIMEOUT_SECONDS = 10  # for Postgres to let us in
_AS_STRICT_AS_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

Topic = Literal[  # what `take_turns` is about
    "bases", "cycles", "devices", "documents", "erasures", "keys", "releases", "reviews", "sender", "threads"
]

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

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], Any] | None:
        """Return what makes a moment of ours one of the driver's; for SQLite the text that SQLAlchemy stores too."""
        return _sqlite_moment if dialect.name == "sqlite" else super().bind_processor(dialect)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return `value` as the driver stores it."""
        return None if value is None else _in_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored moment, aware."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; store datetime.now(UTC)")
    return value if value.tzinfo is UTC else value.astimezone(UTC)


@lru_cache(maxsize=512)  # a batch has one moment for many rows
def _sqlite_moment(value: datetime | None) -> str | None:  # a fifth of what SQLAlchemy's own way costs
    return None if value is None else _in_utc(value).isoformat(" ", "microseconds").removesuffix("+00:00")


class Database:
    """All state that is not a file. Safe to use from many threads; do not nest transactions in one thread."""

    def __init__(self, url: str, *, key_file: Path | None = None, mask: Mask | None = None) -> None:
        """Open `url`, such as `sqlite:////home/me/.everswarm/everswarm.sqlite` or a Postgres URL.

        Args:
            url: where the database is.
            key_file: of the key for sealed columns, made when it is first needed; default: beside a SQLite file.
            mask: takes out of a text what must not be stored in sealed columns at all.
        """
        self.url = url
        self.engine = _make_engine(url)
        if key_file is None and self._is_sqlite:
            key_file = Path(str(self.engine.url.database)).with_name(KEY_NAME)
        self._seal = SealSource(key_file, mask=mask)
        give_seal(self.engine.dialect, self._seal)
        self._behind = WriteBehind(self._begin_writing)
        self._thread = threading.local()  # `writes`: this thread is inside a transaction

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Write: all of the block or nothing of it. On SQLite it takes the write lock at once, so it never fails late.

        On Postgres others write at the same time: a decision that rests on what was read begins with `take_turns`.

        Raises:
            BadRequestError: a value does not fit into its column (Postgres).
            NoSpaceError: the disk is full; nothing was written.
            UnavailableError: another writer held the database for the whole of the busy timeout.
        """
        self._catch_up()
        with values_explained(), self._begin_writing() as connection:
            self._thread.writes = True
            try:
                yield connection
            finally:
                self._thread.writes = False

    @contextmanager
    def _begin_writing(self) -> Iterator[Connection]:
        with (
            self._errors_explained(),
            self.engine.connect().execution_options(everswarm_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Read one consistent state; a write in here is an error."""
        self._catch_up()
        options = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._errors_explained(), self.engine.connect().execution_options(**options) as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the stored schema up to this version of everswarm; cheap when it is there already."""
        from everswarm.server.migrations.upgrade import upgrade_database

        with self._errors_explained():
            upgrade_database(self.engine)

    def write_soon(self, table: Table, row: Mapping[str, Any]) -> None:
        """Store `row` within milliseconds, in one transaction with the others of that moment; return at once.

        From any thread. What reads or writes through this object later waits for it and sees it. A process that is
        killed loses what was queued in its last 25 ms; `close` loses nothing. While the database cannot be written
        rows are kept and tried again every second, and `write_problem` says why. One that can never be stored is
        logged and dropped. The row must not be changed any more; defaults that a table has in Python do not apply.

        Raises:
            UnavailableError: 20,000 rows wait already.
        """
        self._behind.add(table, row)

    @property
    def seal(self) -> Seal:
        """What seals the text in it, and gives people the names by which they are known elsewhere."""
        return self._seal.seal

    @property
    def has_key(self) -> bool:
        """Whether there is a key for sealed columns already; `seal` makes one where there is none."""
        return self._seal.has_key

    @property
    def write_problem(self) -> EverswarmError | None:
        """Why rows of `write_soon` cannot be stored now; None when all is well."""
        return self._behind.problem

    def close(self) -> None:
        """Store what `write_soon` has queued, and give back all connections."""
        self._behind.close()
        self.engine.dispose()

    @property
    def _is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def _errors_explained(self) -> AbstractContextManager[None]:
        return errors_explained(self.engine.url, patience_milliseconds=BUSY_TIMEOUT_MILLISECONDS)

    def _catch_up(self) -> None:
        """Wait for the rows that were queued before; inside a transaction that would wait for itself."""
        if self._behind.is_behind and not getattr(self._thread, "writes", False):
            self._behind.wait()


def insert_ignore(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the `rows` whose keys are not taken yet; return how many were really inserted.

    All rows have the same columns. A conflict on any unique column means 'is there already'.
    """
    if not rows:
        return 0
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    return connection.execute(statement, [dict(row) for row in rows]).rowcount


def insert_new(connection: Connection, key: Column[str], rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert the `rows` whose `key` is not taken yet; return the keys of those that were really inserted, by us.

    Of two writers of one key at the same time exactly one gets it back. All rows have the same columns.
    """
    if not rows:
        return set()
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(key.table).on_conflict_do_nothing().returning(key)
    in_one_order = sorted(rows, key=lambda row: str(row[key.name]))  # else two batches could wait for each other
    return set(connection.execute(statement, [dict(row) for row in in_one_order]).scalars())


def take_turns(connection: Connection, topic: Topic, name: str = "") -> None:
    """Wait until nobody else has `topic` (of `name`), and have it until the transaction ends.

    What is read after this stays true until then, if all who write it take turns. Call it before reading. On SQLite
    there is nothing to do: one transaction writes at a time.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_number_of(topic, name))))


def share_turn(connection: Connection, topic: Topic, name: str = "") -> None:
    """Wait until nobody has `topic` alone, and let nobody have it alone until the transaction ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock_shared(_number_of(topic, name))))


def _number_of(topic: Topic, name: str) -> int:
    digest = hashlib.sha256(f"{topic}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


async def _database_of(request: Request) -> Database:  # async: else the framework calls it in a thread
    database: Database = request.app.state.database
    return database


DatabaseDep = Annotated[Database, Depends(_database_of)]


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigurationError(
            "EVERSWARM_DATABASE_URL is not a URL. Write it as postgresql://NAME:PASSWORD@HOST/DATABASE, with special "
            "characters of the password percent-encoded, or unset it for SQLite in the home."
        ) from error
    if parsed.get_backend_name() != "sqlite":
        return _make_postgres_engine(parsed)
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError(
            f"The database URL {url!r} names no file, and each thread would see its own empty database. "
            "Name a file, such as sqlite:////home/me/everswarm.sqlite."
        )
    create_private_file(Path(parsed.database))
    engine = create_engine(parsed, pool_size=POOL_SIZE, max_overflow=POOL_OVERFLOW, json_serializer=to_json)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_postgres_engine(url: URL) -> Engine:
    if url.drivername not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise cannot_be_used(url, f"{url.drivername!r} is neither sqlite nor postgresql")
    timeout = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_SECONDS}
    try:
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_pre_ping=True,
            json_serializer=to_json,
            isolation_level="READ COMMITTED",  # who waited for a turn must see what was written meanwhile
            connect_args={"application_name": "everswarm", **timeout},
        )
    except ImportError as error:
        raise MissingExtraError("A Postgres database", "postgres") from error
    event.listen(engine, "connect", _prepare_postgres)
    return engine


def to_json(value: Any) -> str:
    """Return `value` as the JSON that `json.dumps` means, mostly four times as fast."""
    try:
        text = orjson.dumps(value, option=_AS_STRICT_AS_JSON).decode()
    except TypeError:  # half a surrogate pair, a number over 64 bits, a key that is no text
        return json.dumps(value)
    return json.dumps(value) if "null" in text else text  # may be a NaN, which orjson writes as null


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # sqlite3 would begin by itself, and too late; `_begin_sqlite` does it
    dbapi_connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    dbapi_connection.execute("PRAGMA cache_size=-1024")  # KiB; each of many connections has its own
    dbapi_connection.execute("PRAGMA journal_mode=WAL")
    dbapi_connection.execute("PRAGMA synchronous=FULL")  # an acknowledged write survives a power cut
    dbapi_connection.execute("PRAGMA foreign_keys=ON")
    dbapi_connection.execute("PRAGMA wal_autocheckpoint=4000")  # pages, 16 MB: what changes again is copied once


def _prepare_postgres(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.execute(f"SET lock_timeout = {BUSY_TIMEOUT_MILLISECONDS}")
    dbapi_connection.commit()


def _begin_sqlite(connection: Connection) -> None:
    writes = bool(connection.get_execution_options().get("everswarm_write"))
    if connection.info.get("everswarm_writes") is not writes:  # said again, all is prepared anew
        raw: Any = connection.connection.dbapi_connection
        raw.execute(f"PRAGMA query_only={0 if writes else 1}")
        connection.info["everswarm_writes"] = writes
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
