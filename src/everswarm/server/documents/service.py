"""Keeping a user's documents, within limits, and searching them. What is another's looks as if it were not there."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row

from everswarm.errors import BadRequestError, NotFoundError, TooLargeError
from everswarm.identifiers import new_id
from everswarm.schemas.document import Document, DocumentCreate, DocumentText
from everswarm.server.database import Database, take_turns
from everswarm.server.documents import repository
from everswarm.server.documents.passages import split_passages
from everswarm.server.documents.repository import Found

MAX_DOCUMENTS = 1_000  # of one user
MAX_KEPT_BYTES = 50_000_000  # of all texts of one user, as UTF-8
QUERY_SHOWN_CHARACTERS = 200


def add_document(database: Database, user: str, request: DocumentCreate) -> tuple[Document, bool]:
    """Store a document and say whether it is new; the same title and text again give the one that is there.

    Raises:
        BadRequestError: the title or the text is blank, or the user has as many documents as one may have.
        TooLargeError: the user's texts together would be over their limit.
    """
    title, text = " ".join(_storable(request.title).split()), _storable(request.text)
    passages = split_passages(text)
    if not title or not passages:
        raise BadRequestError("A document needs a title and a text, and one of them is blank. Send both.")
    row = {
        "id": new_id(),
        "user": user,
        "title": title,
        "text": text,
        "sha256": hashlib.sha256(f"{title}\n{text}".encode()).hexdigest(),
        "characters": len(text),
        "size_bytes": len(text.encode()),
        "passages": len(passages),
        "created_at": datetime.now(UTC),
    }
    pieces = [
        {"document_id": row["id"], "position": position, "user": user, "title": title, "text": passage.text}
        for position, passage in enumerate(passages)
    ]
    with database.transaction() as connection:
        return _store(connection, row, pieces)


def list_documents(database: Database, user: str, *, limit: int) -> list[Document]:
    """Return the user's documents, the newest first."""
    with database.read() as connection:
        return [_document(row) for row in repository.list_documents(connection, user=user, limit=limit)]


def get_document(database: Database, user: str, document_id: str) -> DocumentText:
    """Return one document with its text.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.read() as connection:
        row = repository.find_document(connection, document_id, user=user)
    if row is None:
        raise _no_such_document(document_id)
    return DocumentText(**{name: row._mapping[name] for name in DocumentText.model_fields})


def delete_document(database: Database, user: str, document_id: str) -> None:
    """Delete one document and its passages at once.

    Raises:
        NotFoundError: it is not there, or another's.
    """
    with database.transaction() as connection:
        if not repository.delete_document(connection, document_id, user=user):
            raise _no_such_document(document_id)


def has_documents(database: Database, user: str) -> bool:
    """Say whether the user has any document: one look into an index."""
    with database.read() as connection:
        return repository.has_documents(connection, user)


def search_documents(database: Database, user: str, query: str, *, limit: int) -> list[Found]:
    """Return the user's passages that fit `query`, the best first; any text may be a query."""
    with database.read() as connection:
        return repository.search(connection, user=user, query=query, limit=limit)


def search_text(database: Database, user: str, query: str, limit: int = 4) -> str:
    """Return the same as text for a model: each passage under the title of its document."""
    found = search_documents(database, user, query, limit=limit)
    if not found:
        return f"Nothing found in your documents for: {_shown(query)}"
    return "\n\n".join(f"[{passage.title}]\n{passage.text}" for passage in found)


def _store(connection: Connection, row: dict[str, Any], pieces: list[dict[str, Any]]) -> tuple[Document, bool]:
    take_turns(connection, "documents", row["user"])
    same = repository.find_same(connection, user=row["user"], sha256=row["sha256"])
    if same is not None:
        return _document(same), False
    _check_limits(repository.count_kept(connection, row["user"]), row["size_bytes"])
    stored = repository.insert_document(connection, row)
    is_new = stored.id == row["id"]
    if is_new:
        repository.insert_passages(connection, pieces)
    return _document(stored), is_new


def _check_limits(kept: repository.Kept, added_bytes: int) -> None:
    what_to_do = "Delete some: GET /api/documents lists them, DELETE /api/documents/{id} deletes one."
    if kept.documents >= MAX_DOCUMENTS:
        raise BadRequestError(
            f"You have {kept.documents:,} documents, and one key may keep {MAX_DOCUMENTS:,}. {what_to_do}"
        )
    if kept.size_bytes + added_bytes > MAX_KEPT_BYTES:
        raise TooLargeError(
            f"This text has {added_bytes:,} bytes; with it your documents would have more than {MAX_KEPT_BYTES:,}, "
            f"the most that one key may keep. {what_to_do}"
        )


def _document(row: Row[Any]) -> Document:
    return Document(**{name: row._mapping[name] for name in Document.model_fields})


def _shown(query: str) -> str:
    """Return `query` on one short line, as UTF-8 can say it."""
    line = " ".join(query[:QUERY_SHOWN_CHARACTERS].split()).encode("utf-8", "replace").decode("utf-8")
    return line if len(query) <= QUERY_SHOWN_CHARACTERS else f"{line}…"


def _no_such_document(document_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no document {document_id[:100]!r} of yours. GET /api/documents lists those that are."
    )


def _storable(text: str) -> str:
    """Return `text` without the NUL character, which Postgres cannot store."""
    return text.replace("\x00", "")
