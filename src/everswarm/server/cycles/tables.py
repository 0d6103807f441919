"""Cycles, and one row for each of their stages."""

from __future__ import annotations

from sqlalchemy import JSON, Column, ForeignKey, Index, Integer, String, Table, Text

from everswarm.server.database import UtcDateTime, metadata

cycles = Table(
    "cycles",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),  # running, released, held, failed, cancelled
    Column("reason", Text),
    Column("trigger", String(32), nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("attempt", Integer, nullable=False),  # grows with each retry; names the workflow
    Column("release_id", String(64)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
)

stages = Table(
    "stages",
    metadata,
    Column("id", String(96), primary_key=True),  # of the job, too
    Column("cycle_id", String(64), ForeignKey("cycles.id"), nullable=False),
    Column("stage", String(16), nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, done, failed
    Column("inputs", JSON, nullable=False),
    Column("checkpoint", JSON),
    Column("progress", JSON),
    Column("result", JSON),
    Column("spent", JSON),
    Column("error", Text),
    Column("attempts", Integer, nullable=False),  # leases
    Column("tries", Integer, nullable=False),  # leases that expired or failed since the last checkpoint
    Column("restarts", Integer, nullable=False),  # leases that their worker left by restarting, since then
    Column("worker_id", String(100)),
    Column("lease_token", String(64)),
    Column("leased_until", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime),
    Index("ix_stages_state", "state", "created_at"),
    Index("ix_stages_cycle", "cycle_id"),
)
