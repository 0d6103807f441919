"""Keeps, while an answer is made, who did what for it. `schemas.trace.Trace` is what it becomes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from everswarm.schemas.trace import Purpose, Trace, TraceStep
from everswarm.server.feedback.service import AnsweredInteraction
from everswarm.server.gateway import Answered, AnsweredStream

DETAIL_CHARACTERS = 400


@dataclass(slots=True)
class Step:
    """One thing that is done; see `TraceStep`."""

    purpose: Purpose
    started: float  # time.monotonic()
    role: str | None = None
    endpoint: str | None = None
    model: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    why: str = ""
    outcome: str = "cut"  # until it ends otherwise
    detail: str = ""
    ended: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = False

    def answered(self, answered: Answered | AnsweredStream) -> None:
        """Note who answers."""
        self.endpoint, self.model, self.role = answered.endpoint, answered.model, answered.role or self.role
        self.cached = answered.cached

    def count(self, usage: object) -> None:
        """Note what an answer says that it cost; one from the cache costs nothing."""
        if isinstance(usage, Mapping) and usage and not self.cached:
            self.prompt_tokens = read_count(usage.get("prompt_tokens"))
            self.completion_tokens = read_count(usage.get("completion_tokens"))

    def end(self, outcome: str = "done", detail: str = "") -> None:
        """It is over."""
        self.outcome, self.ended = outcome, time.monotonic()
        self.detail = detail[:DETAIL_CHARACTERS] or self.detail


@dataclass(slots=True)
class Traced:
    """The trace of one answer while it is made."""

    kind: str = "other"
    strategy: str = "single"
    reason: str = ""
    role: str | None = None
    wished_strategy: str | None = None
    notes: list[str] = field(default_factory=list)
    worst_case_tokens: int | None = None
    steps: list[Step] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def begin(self, purpose: Purpose, role: str | None = None, why: str = "") -> Step:
        """Return a step that begins now."""
        step = Step(purpose, time.monotonic(), role=role, why=why)
        self.steps.append(step)
        return step

    def found(self, purpose: Purpose, detail: str, *, why: str = "", outcome: str = "done") -> None:
        """Note what was found without a model."""
        self.begin(purpose, why=why).end(outcome, detail)

    def note(self, text: str) -> None:
        """Note what was left out or done otherwise."""
        if text not in self.notes:
            self.notes.append(text)

    def declare(self, tokens: int) -> None:
        """Note what comes to the most that this answer may cost."""
        self.worst_case_tokens = (self.worst_case_tokens or 0) + tokens

    @property
    def prompt_tokens(self) -> int:
        """Of all calls so far."""
        return sum(step.prompt_tokens or 0 for step in self.steps)

    @property
    def completion_tokens(self) -> int:
        """Of all calls so far."""
        return sum(step.completion_tokens or 0 for step in self.steps)

    @property
    def model_calls(self) -> int:
        """That reached a model, or tried to."""
        return sum(is_model_call(step) for step in self.steps)

    @property
    def looked_up(self) -> bool:
        """Whether the answer rests on what a tool found; a sum can be worked out without one."""
        return any(step.tool and step.tool != "calculator" and step.outcome == "done" for step in self.steps)

    def stored(self) -> dict[str, Any]:
        """Return the trace as it is stored with its interaction; of one plain call only what the interaction lacks."""
        if self._is_one_plain_call:
            return {"kind": self.kind, "strategy": "single", "reason": _storable(self.reason)}
        told: dict[str, Any] = {
            "schema_version": 1,
            "kind": self.kind,
            "strategy": self.strategy,
            "reason": _storable(self.reason),
            "model_calls": self.model_calls,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": round(time.monotonic() - self.started, 3),
            "steps": [self._stored(step) for step in self.steps],
        }
        for name in ("role", "wished_strategy", "worst_case_tokens"):  # what is not there is left out: rows are many
            if (value := getattr(self, name)) is not None:
                told[name] = value
        if self.notes:
            told["notes"] = [_storable(note) for note in self.notes]
        return told

    @property
    def _is_one_plain_call(self) -> bool:
        if len(self.steps) != 1 or self.strategy != "single" or self.notes or self.wished_strategy:
            return False
        step = self.steps[0]
        is_plain = step.purpose == "answer" and step.outcome == "done" and not step.cached and not step.detail
        return is_plain and self.worst_case_tokens is None

    def _stored(self, step: Step) -> dict[str, Any]:
        ended = time.monotonic() if step.ended is None else step.ended
        told = {name: value for name in _OURS if (value := getattr(step, name))}
        told |= {name: _storable(value) for name in _THEIRS if (value := getattr(step, name))}
        told["outcome"] = step.outcome
        told["started_seconds"] = round(step.started - self.started, 3)
        told["seconds"] = round(ended - step.started, 3)
        return told


_OURS = ("purpose", "role", "endpoint", "model", "prompt_tokens", "completion_tokens", "cached")
_THEIRS = ("tool", "arguments", "why", "detail")  # may hold what a model or a user wrote


def is_model_call(step: Step | TraceStep) -> bool:
    """Say whether a model was asked, as opposed to a tool or a free check."""
    return step.role is not None and step.tool is None


def read_trace(answered: AnsweredInteraction) -> Trace:
    """Return the record of a stored trace."""
    stored = dict(answered.trace)
    if "steps" not in stored:
        stored |= _of_one_plain_call(answered)
    return Trace(interaction_id=answered.id, **stored)


def _of_one_plain_call(answered: AnsweredInteraction) -> dict[str, Any]:
    """Return what the trace of one plain call has in common with its interaction."""
    step = TraceStep(
        purpose="answer",
        role=answered.role,
        endpoint=answered.endpoint,
        model=answered.model,
        why=answered.trace["reason"],
        seconds=answered.latency_seconds or 0.0,
        prompt_tokens=answered.prompt_tokens,
        completion_tokens=answered.completion_tokens,
    )
    return {
        "role": answered.role,
        "model_calls": 1,
        "prompt_tokens": answered.prompt_tokens or 0,
        "completion_tokens": answered.completion_tokens or 0,
        "seconds": answered.latency_seconds or 0.0,
        "steps": [step],
    }


def _storable(value: Any) -> Any:
    """Return a JSON value without the NUL character, which Postgres cannot read back."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_storable(name): _storable(item) for name, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value


def read_count(value: object) -> int | None:
    """Return a number of tokens that an endpoint told; None where it is none."""
    return value if type(value) is int and 0 <= value < 2**31 else None
