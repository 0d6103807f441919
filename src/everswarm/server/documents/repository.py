"""The statements about documents and passages. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, cast, delete, exists, func, literal_column, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import TSQUERY

from everswarm.server.documents.search import postgres_query, postgres_words, sqlite_match
from everswarm.server.documents.tables import PASSAGE_INDEX, document_passages, documents
from everswarm.server.documents.words import words_of_query

_SHOWN = [column for column in documents.c if column.name != "text"]
# CROSS: the index first, always; the other way round every passage of the user would be a search. In bm25 the less is
# the better; its weights are those of user, title and text.
_SQLITE_SEARCH = text(
    "SELECT passage.document_id, passage.title, passage.position, passage.text, -rank_of AS score FROM "
    f"(SELECT rowid AS passage_id, bm25({PASSAGE_INDEX}, 0.0, 2.0, 1.0) AS rank_of FROM {PASSAGE_INDEX} "
    f"WHERE {PASSAGE_INDEX} MATCH :match) CROSS JOIN document_passages AS passage ON passage.id = passage_id "
    "WHERE passage.user = :user ORDER BY rank_of, passage.id LIMIT :limit"
)
_POSTGRES_WEIGHTS: ColumnElement[Any] = literal_column(
    "'{0.5, 0.5, 0.5, 1.0}'::real[]"
)  # D (the text), C, B, A (the title)


class Found(NamedTuple):
    """A passage that fits a question."""

    document_id: str
    title: str
    position: int
    text: str
    score: float  # the higher the better; comparable within one search only


class Kept(NamedTuple):
    """How much a user has."""

    documents: int
    size_bytes: int


def insert_document(connection: Connection, row: Mapping[str, Any]) -> Row[Any]:
    """Store a document and return its row; where the user has the same already, the row of that."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(documents).values(dict(row))
    same = statement.on_conflict_do_update(
        index_elements=[documents.c.user, documents.c.sha256], set_={"sha256": documents.c.sha256}
    )  # an update that changes nothing: of two at the same time both get the one row
    return connection.execute(same.returning(*_SHOWN)).one()


def insert_passages(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store the passages of a document, which makes them found."""
    on_postgres = connection.dialect.name == "postgresql"
    connection.execute(
        document_passages.insert(),
        [{**row, "words": postgres_words(row["title"], row["text"]) if on_postgres else None} for row in rows],
    )


def find_same(connection: Connection, *, user: str, sha256: str) -> Row[Any] | None:
    """Return the user's document with this content, without its text."""
    return connection.execute(_of(user).where(documents.c.sha256 == sha256)).one_or_none()


def find_document(connection: Connection, document_id: str, *, user: str) -> Row[Any] | None:
    """Return a document of the user with its text."""
    return connection.execute(
        select(documents).where(documents.c.id == document_id, documents.c.user == user)
    ).one_or_none()


def list_documents(connection: Connection, *, user: str, limit: int) -> list[Row[Any]]:
    """Return the user's documents without their texts, the newest first."""
    newest_first = _of(user).order_by(documents.c.created_at.desc(), documents.c.id.desc())
    return list(connection.execute(newest_first.limit(limit)))


def count_kept(connection: Connection, user: str) -> Kept:
    """Return how many documents the user has, and how large their texts are together."""
    wanted = select(func.count(), func.coalesce(func.sum(documents.c.size_bytes), 0)).where(documents.c.user == user)
    count, size_bytes = connection.execute(wanted).one()
    return Kept(count, int(size_bytes))


def has_documents(connection: Connection, user: str) -> bool:
    """Say whether the user has any."""
    return bool(connection.execute(select(exists().where(documents.c.user == user))).scalar_one())


def delete_document(connection: Connection, document_id: str, *, user: str) -> bool:
    """Delete a document of the user, and its passages; say whether there was one."""
    connection.execute(
        delete(document_passages).where(
            document_passages.c.document_id == document_id, document_passages.c.user == user
        )
    )
    gone = connection.execute(delete(documents).where(documents.c.id == document_id, documents.c.user == user))
    return bool(gone.rowcount)


def search(connection: Connection, *, user: str, query: str, limit: int) -> list[Found]:
    """Return the user's passages with any of the words of `query`, the best first. Any text is a query."""
    words = words_of_query(query)
    if not words:
        return []
    if connection.dialect.name == "sqlite":
        asked = {"match": sqlite_match(user, words), "user": user, "limit": limit}
        return [Found(*row) for row in connection.execute(_SQLITE_SEARCH, asked)]
    return [Found(*row) for row in connection.execute(_postgres_search(user, words).limit(limit))]


def _of(user: str) -> Select[Any]:
    return select(*_SHOWN).where(documents.c.user == user)


def _postgres_search(user: str, words: Sequence[str]) -> Select[Any]:
    passage, question = document_passages.c, cast(postgres_query(words), TSQUERY)
    score = func.ts_rank_cd(_POSTGRES_WEIGHTS, passage.words, question)
    found = select(passage.document_id, passage.title, passage.position, passage.text, score)
    return found.where(passage.user == user, passage.words.op("@@")(question)).order_by(score.desc(), passage.id)
