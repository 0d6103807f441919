"""What was asked and answered on this device: one SQLite file, written through to the disk before we say 'done'."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from everswarm.errors import ConfigurationError, ConflictError, NoSpaceError, NotFoundError
from everswarm.schemas.base import Record, Timestamp
from everswarm.schemas.interaction import Message

KEPT_INTERACTIONS = 1000  # older ones are forgotten
BUSY_SECONDS = 30.0  # how long a command waits for another one's write

TABLES = """
CREATE TABLE IF NOT EXISTS interactions (
  id TEXT PRIMARY KEY, created_at TEXT NOT NULL, model TEXT NOT NULL, messages TEXT NOT NULL, response TEXT NOT NULL,
  regenerated INTEGER NOT NULL DEFAULT 0, copied INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS feedback (
  interaction_id TEXT PRIMARY KEY, state TEXT NOT NULL, payload TEXT, reason TEXT, changed_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS escalations (
  interaction_id TEXT PRIMARY KEY, answered_at TEXT NOT NULL, consent INTEGER NOT NULL, answer TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS feedback_by_state ON feedback (state, interaction_id);
"""
LATER_COLUMNS = {"interactions": {"regenerated", "copied"}}  # those that journals of older versions lack: yes or no


class Interaction(Record):
    """One question to this device and its answer."""

    id: str
    created_at: Timestamp
    model: str
    messages: list[Message]
    response: str
    regenerated: bool = False  # it was asked again
    copied: bool = False


@contextmanager
def open_journal(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the journal, making it if need be; everything inside the block is one transaction.

    Raises:
        NoSpaceError: the disk is full; nothing was written.
        ConflictError: another command keeps it locked.
        ConfigurationError: the file is not a journal.
    """
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a rating that we took must survive a power cut
            connection.executescript(TABLES)
            connection.execute("BEGIN IMMEDIATE")
            try:
                _add_later_columns(connection)
                yield connection
            except BaseException:
                connection.rollback()
                raise
            connection.commit()
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise NoSpaceError(
                f"The disk of {path.parent} is full; nothing was written. Free some space first."
            ) from error
        if "locked" in str(error):
            raise ConflictError(
                f"{path} is in use by another command for over {BUSY_SECONDS:.0f} s. Wait until it ends."
            ) from error
        raise ConfigurationError(
            f"{path} cannot be used ({error}). Move it away to begin a new one; ratings that were not sent are in it."
        ) from error


def _add_later_columns(connection: sqlite3.Connection) -> None:
    for table, columns in LATER_COLUMNS.items():
        there = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        for column in columns - there:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Keep a second process out of the block; the lock leaves with its process, however that ends.

    Raises:
        ConflictError: another process is inside.
    """
    with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise ConflictError(f"Another {what} of this device is running. Wait until it ends.") from error
        yield


def remember(connection: sqlite3.Connection, interaction: Interaction) -> None:
    """Keep `interaction`, and forget the oldest beyond the limit.

    The same question to the same model, twice in a row, says that the first answer did not do.
    """
    messages = json.dumps([message.model_dump() for message in interaction.messages], ensure_ascii=False)
    last = connection.execute(
        "SELECT id, model, messages FROM interactions ORDER BY rowid DESC LIMIT 1"  # by rowid: a clock may be set back
    ).fetchone()
    if last is not None and last[1:] == (interaction.model, messages):
        note_signals(connection, last[0], regenerated=True)
    connection.execute(
        "INSERT INTO interactions (id, created_at, model, messages, response) VALUES (?, ?, ?, ?, ?)",
        (interaction.id, interaction.created_at.isoformat(), interaction.model, messages, interaction.response),
    )
    connection.execute(
        "DELETE FROM interactions WHERE rowid NOT IN (SELECT rowid FROM interactions ORDER BY rowid DESC LIMIT ?)",
        (KEPT_INTERACTIONS,),
    )
    connection.execute("DELETE FROM escalations WHERE interaction_id NOT IN (SELECT id FROM interactions)")


def note_signals(
    connection: sqlite3.Connection, interaction_id: str, *, regenerated: bool = False, copied: bool = False
) -> None:
    """Keep what was done with an answer; a judgement on it that waits says it too."""
    for name, given in (("regenerated", regenerated), ("copied", copied)):
        if given:
            connection.execute(f"UPDATE interactions SET {name} = 1 WHERE id = ?", (interaction_id,))
            connection.execute(
                "UPDATE feedback SET payload = json_set(payload, ?, json('true')) "
                "WHERE interaction_id = ? AND state = 'queued'",
                (f"$.{name}", interaction_id),
            )


def recall(connection: sqlite3.Connection, interaction_id: str | None = None) -> Interaction:
    """Return the interaction with this id, or the last one.

    Raises:
        NotFoundError: there is none.
    """
    columns = "SELECT id, created_at, model, messages, response, regenerated, copied FROM interactions"
    if interaction_id is None:
        row = connection.execute(f"{columns} ORDER BY rowid DESC LIMIT 1").fetchone()
    else:
        row = connection.execute(f"{columns} WHERE id = ?", (interaction_id,)).fetchone()
    if row is None:
        what = f"the id {interaction_id}" if interaction_id else "any answer yet"
        raise NotFoundError(
            f"This device does not remember {what}; it keeps its last {KEPT_INTERACTIONS:,} answers. "
            'Ask something first: everswarm device chat "…"'
        )
    return Interaction(
        id=row[0],
        created_at=row[1],
        model=row[2],
        messages=json.loads(row[3]),
        response=row[4],
        regenerated=bool(row[5]),
        copied=bool(row[6]),
    )


def now() -> datetime:
    """Return this moment in UTC."""
    return datetime.now(UTC)
