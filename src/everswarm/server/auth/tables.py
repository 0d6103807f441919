"""The keys. Never a key itself, only its hash."""

from __future__ import annotations

from sqlalchemy import Column, String, Table

from everswarm.server.database import UtcDateTime, metadata

keys = Table(
    "keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("prefix", String(24), nullable=False),  # enough to recognise a key by, too little to use it
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scope", String(20), nullable=False),
    Column("label", String(100), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
)
