"""What is in the artifact store."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table

from everswarm.server.database import UtcDateTime, metadata

artifacts = Table(
    "artifacts",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("kind", String(40), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)
