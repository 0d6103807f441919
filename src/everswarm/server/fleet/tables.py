"""Devices, releases, and the base model of each role."""

from __future__ import annotations

from sqlalchemy import JSON, Column, ForeignKey, Integer, String, Table, Text, UniqueConstraint

from everswarm.server.database import UtcDateTime, metadata

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(200), primary_key=True),
    Column("key_id", String(36), index=True),  # the device key that it enrolled with; none when an admin enrolled it
    Column("name", String(100), nullable=False),
    Column("client_version", String(50), nullable=False),
    Column("enrolled_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("release_id", String(36), ForeignKey("releases.id")),  # the one that it was told of last
)

releases = Table(
    "releases",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("role", String(50), nullable=False),
    Column("number", Integer, nullable=False),  # 0, 1, 2, … within the role; the version is made of it
    Column("version", String(20), nullable=False),
    Column("student", String(200), nullable=False),
    Column("base", JSON, nullable=False),
    Column("adapter", JSON(none_as_null=True)),
    Column("quantization", String(50), nullable=False),
    Column("cycle_id", String(64), nullable=False, unique=True),
    Column("dataset", String(64), nullable=False),
    Column("evaluation", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("oldest_client", String(20), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    UniqueConstraint("role", "number"),
)

bases = Table(
    "bases",
    metadata,
    Column("role", String(50), primary_key=True),
    Column("student", String(200), nullable=False),
    Column("artifact", JSON, nullable=False),
    Column("quantization", String(50), nullable=False),
)
