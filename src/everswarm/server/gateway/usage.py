"""What one call cost: measured while it runs, then stored, counted and taken off the quota."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from everswarm.identifiers import new_id
from everswarm.server.database import Database
from everswarm.server.gateway.metrics import Outcome
from everswarm.server.gateway.tables import usage as usage_table

CHARACTERS_A_TOKEN = 3  # of an answer whose endpoint does not count; on the safe side
MOST_TOKENS = 10**9  # more is no count but a mistake


class TokenCounts(NamedTuple):
    """What a call used."""

    prompt: int
    answer: int
    total: int


@dataclass
class Usage:
    """One call to one endpoint. Token counts are None where the endpoint did not say."""

    endpoint: str
    role: str | None
    model: str
    priority: str
    outcome: Outcome
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_seconds: float  # from the request's arrival, waiting included
    queue_seconds: float = 0.0
    price_usd: float = 0.0
    interaction_id: str | None = None


def record_usage(database: Database, usage: Usage) -> None:
    """Store `usage` with the present moment, together with what else is written in these milliseconds."""
    database.write_soon(usage_table, {"id": new_id(), "created_at": datetime.now(UTC), **vars(usage)})


def read_counts(usage: object) -> TokenCounts | None:
    """Return the counts of a `usage` object; None where there is none that can be believed."""
    if not isinstance(usage, Mapping):
        return None
    prompt, answer = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None or answer is None:
        return None
    total = _count(usage, "total_tokens")
    return TokenCounts(prompt, answer, max(total or 0, prompt + answer))


def estimate_answer_tokens(choices: Any) -> int:
    """Return about how many tokens the text of `choices`, of a completion or a chunk, has."""
    characters = 0
    for choice in choices or ():
        said = choice.get("delta") or choice.get("message") or {}
        characters += sum(len(value) for value in said.values() if isinstance(value, str))
        characters += len(str(said["tool_calls"])) if said.get("tool_calls") else 0
    return -(-characters // CHARACTERS_A_TOKEN)


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
