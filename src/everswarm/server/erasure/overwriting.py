"""Makes SQLite overwrite what it deletes; without this, texts stay in free pages and in the log until they are reused.

Postgres keeps deleted rows until its autovacuum comes by, minutes later.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection

from everswarm.server.database import BUSY_TIMEOUT_MILLISECONDS, Database

READERS_WAIT_MILLISECONDS = 1_000  # for whoever still reads the old state


@contextlib.contextmanager
def overwriting(connection: Connection) -> Iterator[None]:
    """Overwrite with zeros what is deleted within, on SQLite."""
    if connection.dialect.name != "sqlite":
        yield
        return
    raw: Any = connection.connection.dbapi_connection
    [before] = raw.execute("PRAGMA secure_delete").fetchone()
    raw.execute("PRAGMA secure_delete=ON")
    try:
        yield
    finally:
        raw.execute(f"PRAGMA secure_delete={int(before)}")


def empty_log(database: Database) -> None:
    """Empty SQLite's log, which has the old pages. While somebody reads these it stays, until the next time."""
    if database.engine.dialect.name != "sqlite":
        return
    pooled = database.engine.raw_connection()
    try:
        raw: Any = pooled.driver_connection
        with contextlib.suppress(sqlite3.Error):
            raw.execute(f"PRAGMA busy_timeout={READERS_WAIT_MILLISECONDS}")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            raw.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")
    finally:
        pooled.close()
