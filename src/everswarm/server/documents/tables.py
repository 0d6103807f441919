"""Documents, and the passages that a search finds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

from everswarm.server.database import UtcDateTime, metadata

documents = Table(
    "documents",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user", String(200), nullable=False),  # whose it is: a key
    Column("title", String(200), nullable=False),
    Column("sha256", String(64), nullable=False),  # of title and text
    Column("characters", Integer, nullable=False),
    Column("size_bytes", Integer, nullable=False),  # of the text
    Column("passages", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),  # last, so that SQLite lists documents without reading it
    UniqueConstraint("user", "sha256"),
    Index(None, "user", "created_at"),
)

document_passages = Table(
    "document_passages",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("document_id", String(36), ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),  # in its document, from 0
    Column("user", String(200), nullable=False),
    Column("title", String(200), nullable=False),  # of the document, so that its words count here too
    Column("text", Text, nullable=False),
    Column("words", Text().with_variant(TSVECTOR(), "postgresql")),  # what Postgres searches; none on SQLite
    UniqueConstraint("document_id", "position"),
    Index(None, "user"),
    # SQLite has no GIN, and nothing to index here either
    Index(None, "words", postgresql_using="gin", sqlite_where=text("words IS NOT NULL")),
)

# SQLite: an FTS5 index over the passages, which keeps no text of its own and follows the table by itself. It is no
# Table here, because metadata cannot describe it; a migration that rebuilds `document_passages` makes these again.
PASSAGE_INDEX = "passage_words"
_SQLITE_INDEX = (
    f"CREATE VIRTUAL TABLE {PASSAGE_INDEX} USING fts5(user, title, text, content='document_passages', "
    "content_rowid='id', tokenize='unicode61 remove_diacritics 2')",
    "CREATE TRIGGER document_passages_inserted AFTER INSERT ON document_passages BEGIN "
    f"INSERT INTO {PASSAGE_INDEX} (rowid, user, title, text) VALUES (new.id, new.user, new.title, new.text); END",
    "CREATE TRIGGER document_passages_deleted AFTER DELETE ON document_passages BEGIN "
    f"INSERT INTO {PASSAGE_INDEX} ({PASSAGE_INDEX}, rowid, user, title, text) "
    "VALUES ('delete', old.id, old.user, old.title, old.text); END",
)


def _create_index(_table: Table, connection: Connection, **_options: Any) -> None:
    if connection.dialect.name == "sqlite":
        for statement in _SQLITE_INDEX:
            connection.exec_driver_sql(statement)


def _drop_index(_table: Table, connection: Connection, **_options: Any) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {PASSAGE_INDEX}")


event.listen(document_passages, "after_create", _create_index)
event.listen(document_passages, "before_drop", _drop_index)
