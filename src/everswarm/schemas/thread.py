"""Conversations that the server keeps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from everswarm.schemas.base import Record, Timestamp

TITLE_CHARACTERS = 200

ExportFormat = Literal["json", "jsonl", "markdown"]


def _on_one_line(value: object) -> object:
    return " ".join(value.replace("\x00", "").split()) if isinstance(value, str) else value


Title = Annotated[str, Field(min_length=1, max_length=TITLE_CHARACTERS), BeforeValidator(_on_one_line)]


class ThreadCreate(Record):
    """`POST /api/threads`. Without a title the first question gives one."""

    title: Title | None = None


class ThreadRename(Record):
    """`PATCH /api/threads/{id}`."""

    title: Title


class ThreadView(Record):
    """A conversation, without what was said in it."""

    id: str
    title: str | None  # none before the first question
    created_at: Timestamp
    updated_at: Timestamp  # of the last turn
    turns: int  # questions and answers together


class ThreadTurn(Record):
    """What one side said; judgements of an answer name its `interaction_id`."""

    position: int  # from 1
    role: Literal["user", "assistant"]
    content: str
    interaction_id: str | None
    created_at: Timestamp


class ThreadDetail(ThreadView):
    """A conversation with all that was said in it."""

    messages: list[ThreadTurn]
