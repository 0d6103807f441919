"""Interactions, and what people thought of them."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text

from everswarm.server.database import UtcDateTime, metadata

_IN_A_THREAD = text("thread_id IS NOT NULL")  # most are in none, and cost no entry
_SORTABLE = String(200).with_variant(String(200, collation="C"), "postgresql")  # one order on every database

interactions = Table(
    "interactions",
    metadata,
    Column("id", _SORTABLE, primary_key=True),
    Column("user", String(200), nullable=False),  # who asked: a key, or a device
    Column("sender", String(200)),  # the key that brought it, where that is not the user
    Column("source", String(10), nullable=False),  # web, device, import
    Column("created_at", UtcDateTime, nullable=False),
    Column("role", String(200)),
    Column("model", String(200)),
    Column("endpoint", String(200)),
    Column("messages", JSON, nullable=False),
    Column("response", Text),
    Column("state", String(10), nullable=False),  # complete, cut (the reader left, or the limit came), failed
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("latency_seconds", Float),
    Column("trace", JSON(none_as_null=True)),  # what more is to be told of how the answer came; see `swarm/trace.py`
    Column("escalated_to", String(200)),  # the swarm's interaction that answers it again; asked for by its device
    Column("thread_id", String(36)),  # deleted with it, unless judged; no foreign key: it may come later
    Index(None, "thread_id", sqlite_where=_IN_A_THREAD, postgresql_where=_IN_A_THREAD),
    Index(None, "user", "created_at"),
    Index(None, "sender", "source"),
    Index(None, "created_at"),
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("interaction_id", String(200), ForeignKey("interactions.id"), nullable=False, index=True),
    Column("user", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),  # when it was judged, and never later than when we heard of it
    Column("rating", Integer),
    Column("correction", Text),
    Column("comment", Text),
    Column("preferred_over", String(200)),
    Column("consent", Boolean, nullable=False),
    Column("author", String(10), nullable=False, server_default="person"),  # of the words: a person, or the swarm
)
