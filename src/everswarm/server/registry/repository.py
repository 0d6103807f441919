"""The statements about artifacts."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, select

from everswarm.schemas.artifact import Artifact, ArtifactKind
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


def artifacts_of_kind(connection: Connection, kind: ArtifactKind) -> list[str]:
    """Return the digests of all artifacts of one kind."""
    return list(connection.execute(select(artifacts.c.sha256).where(artifacts.c.kind == kind.value)).scalars())


def forget_artifact(connection: Connection, sha256: str) -> None:
    """Remove the row of one artifact."""
    connection.execute(delete(artifacts).where(artifacts.c.sha256 == sha256))
