"""What each call to a model cost."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, String, Table

from everswarm.server.database import UtcDateTime, metadata

usage = Table(
    "usage",
    metadata,
    Column("id", String(36), primary_key=True),  # of the call; the same as its interaction's
    Column("created_at", UtcDateTime, nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("role", String(200)),
    Column("model", String(200), nullable=False),
    Column("prompt_tokens", Integer),  # unknown where the endpoint did not say
    Column("completion_tokens", Integer),
    Column("latency_seconds", Float, nullable=False),
    Column("status", String(10), nullable=False),  # complete, cut, failed
    Index(None, "endpoint", "created_at"),
)
