"""Threads, and what was said in each."""

from __future__ import annotations

from sqlalchemy import Column, ForeignKey, Index, Integer, String, Table

from everswarm.server.database import UtcDateTime, metadata
from everswarm.server.sealing import SealedText

threads = Table(
    "threads",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user", String(200), nullable=False),
    Column("title", SealedText),  # none before the first question
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),  # of the last turn
    Column("summary", SealedText),
    Column("summary_upto", Integer, nullable=False, default=0),  # the position of the last turn that is in it
    Index("ix_threads_user", "user", "updated_at"),
)

thread_turns = Table(
    "thread_turns",
    metadata,
    Column("thread_id", String(36), ForeignKey("threads.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # from 1, without gaps
    Column("role", String(10), nullable=False),  # user, assistant
    Column("content", SealedText, nullable=False),
    Column("interaction_id", String(200)),  # of an answer; no foreign key, because the interaction is written behind
    Column("created_at", UtcDateTime, nullable=False),
)
