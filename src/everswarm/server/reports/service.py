"""Health and overview, from what the other rooms say of themselves. Pure, but for the reading in `overview_of`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import everswarm
from everswarm.schemas.base import Record, Timestamp
from everswarm.schemas.job import Cycle, Stage
from everswarm.schemas.server import Health
from everswarm.server.cycles.stages import MINIMUM_PEOPLE
from everswarm.server.database import Database
from everswarm.server.feedback.repository import FeedbackStats
from everswarm.server.reports import repository
from everswarm.server.reports.repository import State

OPERATIONAL = "operational"
STARTING = "starting"
TOOL_TROUBLES = ("not started", "cannot be started", "refuses us")  # what those without a key may know
CyclesState = Literal["ready", "starting", "failed"]


class CycleRow(Record):
    """One cycle in a line."""

    id: str
    state: str
    stage: Stage | None  # the one that is at work, or where it stopped; none when it went all the way
    reason: str | None
    student: str
    recipe: str
    trigger: str
    created_at: Timestamp
    finished_at: Timestamp | None
    release_id: str | None


class Overview(Record):
    """`GET /api/overview`: how much there is, and what to do next."""

    interactions: int
    judged: int
    usable: int  # of the judged, those that a cycle can learn from
    needed: int  # how many of these a cycle needs
    people: int  # of whom the usable ones are
    people_needed: int
    corrections: int
    ratings: int
    mean_rating: float | None
    devices: int
    releases: int
    version_in_use: str | None
    cycles: list[CycleRow]  # newest first
    next_step: str


def health_of(
    *,
    endpoints: Mapping[str, str],
    cycles: CyclesState,
    database_answers: bool,
    tool_servers: Mapping[str, str] | None = None,
) -> Health:
    """Return the state of the server. One endpoint that works is enough for `models`; the others become problems.

    A tool server that starts is no problem, as chats do not wait for it.
    """
    tools = dict(tool_servers or {})
    models: Literal["operational", "starting", "unavailable"] = "unavailable"
    if OPERATIONAL in endpoints.values():
        models = "operational"
    elif any(state.startswith(STARTING) for state in endpoints.values()):  # "starting: fetching the model", say
        models = "starting"
    problems = [f"endpoint {name}: {state}" for name, state in endpoints.items() if state != OPERATIONAL]
    if not endpoints:
        problems.append("endpoints: none is configured; enable [engine] or add [[endpoints]] in everswarm.toml")
    problems += [f"tool server {name}: {state}" for name, state in tools.items() if not _is_well(state)]
    if cycles != "ready":
        problems.append(f"cycles: {cycles}" + ("; the server's log says why" if cycles == "failed" else ""))
    if not database_answers:
        problems.append("database: does not answer; the server's log says why")
    return Health(
        status="degraded" if problems else "healthy",
        models=models,
        cycles=cycles,
        version=everswarm.__version__,
        endpoints=dict(endpoints),
        problems=problems,
        tool_servers=tools,
    )


def tools_in_short(states: Mapping[str, str]) -> dict[str, str]:
    """Return the states of tool servers without addresses, programs and variables, for those who have no key."""
    return {
        name: state
        if _is_well(state)
        else next((trouble for trouble in TOOL_TROUBLES if trouble in state), "not connected")
        for name, state in states.items()
    }


def _is_well(tool_state: str) -> bool:
    return tool_state == OPERATIONAL or tool_state.startswith(STARTING)


def overview_of(database: Database, *, needed: int) -> Overview:
    """Return the overview. `needed` is how many usable judgements a cycle needs."""
    with database.read() as connection:
        state = repository.read_state(connection)
    return Overview(
        interactions=state.feedback.interactions,
        judged=state.feedback.judged,
        usable=state.feedback.usable,
        needed=needed,
        people=state.feedback.people,
        people_needed=MINIMUM_PEOPLE,
        corrections=state.feedback.corrections,
        ratings=state.feedback.ratings,
        mean_rating=state.feedback.mean_rating,
        devices=state.devices,
        releases=state.releases,
        version_in_use=None if state.latest_release is None else state.latest_release.version,
        cycles=[_row(cycle) for cycle in state.cycles],
        next_step=next_step(state, needed=needed),
    )


def next_step(state: State, *, needed: int) -> str:
    """Return in one sentence what a person should do now."""
    latest = state.cycles[0] if state.cycles else None
    if latest is not None and latest.state in {"running", "failed"}:
        return _about_unfinished(latest)
    if lacking := _about_lacking_feedback(state.feedback, needed=needed):
        return lacking
    if latest is None:
        return f"There are {state.feedback.usable} examples to learn from: start a cycle with `everswarm cycle run`."
    if state.releases and not state.devices:
        return "A release is ready and no device runs it yet: `everswarm device enroll`."
    return "Nothing needs you now: keep rating and correcting, and the next cycle learns from it."


def _about_lacking_feedback(feedback: FeedbackStats, *, needed: int) -> str | None:
    missing = needed - feedback.usable
    if feedback.interactions == 0:
        return f"Ask something, then rate or correct the answer: a cycle needs {needed} examples."
    if missing > 0:
        return (
            f"Correct {missing} more {'answer' if missing == 1 else 'answers'}, or rate good ones 4 or 5, with consent "
            f"to training: a cycle needs {needed} examples."
        )
    if feedback.people < MINIMUM_PEOPLE:
        return (
            f"Let others ask and correct too: a cycle needs examples of at least {MINIMUM_PEOPLE} people, and those "
            f"there are come from {feedback.people}."
        )
    return None


def _about_unfinished(cycle: Cycle) -> str:
    if cycle.state == "running":
        return "A cycle is running; its progress is below."
    return f"The last cycle failed: see `everswarm cycle show {cycle.id}`, then `everswarm cycle retry {cycle.id}`."


def _row(cycle: Cycle) -> CycleRow:
    unfinished = (status.stage for status in cycle.stages if status.state != "done")
    return CycleRow(
        id=cycle.id,
        state=cycle.state,
        stage=next(unfinished, None),
        reason=cycle.reason,
        student=cycle.parameters.student,
        recipe=cycle.parameters.recipe,
        trigger=cycle.trigger,
        created_at=cycle.created_at,
        finished_at=cycle.finished_at,
        release_id=cycle.release_id,
    )
