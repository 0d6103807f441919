"""Who did what for one answer, why, and at what cost: `GET /api/interactions/{id}/trace`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from everswarm.schemas.base import Record

Purpose = Literal[
    "answer",  # in one call, or the first of a cascade
    "check",
    "escalation",
    "vote",
    "plan",
    "part",
    "assemble",
    "draft",
    "write",
    "decide",  # the coordinator says who answers
    "compact",  # a long conversation was made short
    "tool",
    "route",  # found without a model
]


class TraceStep(Record):
    """One thing that was done: a call of a model, a call of a tool, or a check that costs nothing."""

    purpose: Purpose
    role: str | None = None
    endpoint: str | None = None
    model: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None  # of the tool
    why: str = ""
    outcome: Literal["done", "failed", "refused", "skipped", "cut"] = "done"
    detail: str = ""  # what a check found, what a tool gave (its beginning), what went wrong
    started_seconds: float = 0.0  # after the request came
    seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = False


class Trace(Record):
    """How one answer came about."""

    schema_version: Literal[1] = 1
    interaction_id: str
    kind: str  # what the request is about
    strategy: str  # that gave the answer
    reason: str  # why this strategy and this role
    role: str | None = None  # who answered
    wished_strategy: str | None = None  # where another one was asked for, or would have been taken
    notes: list[str] = Field(default_factory=list)  # what was left out or done otherwise, and why
    worst_case_tokens: int | None = None  # what the strategy declared before it began
    model_calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    steps: list[TraceStep]
