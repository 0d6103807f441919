"""What one call cost, stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from everswarm.server.database import Database
from everswarm.server.gateway import repository


@dataclass(frozen=True)
class Usage:
    """One call to one endpoint. Token counts are None where the endpoint did not say."""

    id: str
    endpoint: str
    role: str | None
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_seconds: float
    status: str  # complete, cut, failed


def record_usage(database: Database, usage: Usage) -> None:
    """Store `usage` with the present moment."""
    with database.transaction() as connection:
        repository.insert_usage(connection, {**asdict(usage), "created_at": datetime.now(UTC)})
