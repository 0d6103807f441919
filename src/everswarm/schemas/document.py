"""A user's own texts, which the swarm can search."""

from __future__ import annotations

from pydantic import Field

from everswarm.schemas.base import Record, Timestamp

MAX_DOCUMENT_TITLE_CHARACTERS = 200
MAX_DOCUMENT_CHARACTERS = 1_000_000


class DocumentCreate(Record):
    """`POST /api/documents`. The same title and text again give the document that is there."""

    title: str = Field(min_length=1, max_length=MAX_DOCUMENT_TITLE_CHARACTERS)
    text: str = Field(min_length=1, max_length=MAX_DOCUMENT_CHARACTERS)


class Document(Record):
    """A document without its text."""

    id: str
    title: str
    characters: int
    passages: int  # that it was split into; a search finds these
    created_at: Timestamp


class DocumentText(Document):
    """A document with its text."""

    text: str


class FoundPassage(Record):
    """One hit of a search."""

    document_id: str
    title: str  # of the document
    position: int  # of the passage in its document, from 0
    text: str
    score: float  # the higher the better; comparable within one search only
