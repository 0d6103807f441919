"""The statements about artifacts."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, select

from everswarm.schemas.artifact import Artifact
from everswarm.server.database import insert_ignore
from everswarm.server.registry.tables import artifacts


def find_artifact(connection: Connection, sha256: str) -> Artifact | None:
    """Return the artifact with this digest, if it was stored."""
    wanted = select(artifacts.c.sha256, artifacts.c.size_bytes, artifacts.c.kind, artifacts.c.name)
    row = connection.execute(wanted.where(artifacts.c.sha256 == sha256)).one_or_none()
    return None if row is None else Artifact(**row._mapping)


def store_artifact(connection: Connection, artifact: Artifact) -> None:
    """Remember `artifact`; a second time changes nothing."""
    row = {**artifact.model_dump(), "kind": artifact.kind.value, "created_at": datetime.now(UTC)}
    insert_ignore(connection, artifacts, [row])
