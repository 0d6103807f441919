"""What each call to a model cost."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, String, Table

from everswarm.server.database import UtcDateTime, metadata

usage = Table(
    "usage",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("interaction_id", String(200)),  # that it was a part of; none for a batch
    Column("created_at", UtcDateTime, nullable=False),
    Column("endpoint", String(200), nullable=False),
    Column("role", String(200)),
    Column("model", String(200), nullable=False),
    Column("priority", String(20), nullable=False),
    Column("outcome", String(10), nullable=False),  # answered, cached, shared, cut, failed, refused
    Column("prompt_tokens", Integer),  # unknown where the endpoint did not say
    Column("completion_tokens", Integer),
    Column("latency_seconds", Float, nullable=False),
    Column("queue_seconds", Float, nullable=False),
    Column("price_usd", Float, nullable=False),
    Index(None, "endpoint", "created_at"),
)
