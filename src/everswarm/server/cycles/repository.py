"""SQL of cycles and stages. Decides nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, Row, delete, select, true, update

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.job import Cycle, CycleParameters, Progress, Spent, Stage, StageStatus
from everswarm.server.cycles.tables import cycles, stages
from everswarm.server.database import insert_ignore, take_turns
from everswarm.server.feedback.tables import erased


def insert_cycle(
    connection: Connection, cycle_id: str, *, parameters: CycleParameters, trigger: str, created_at: datetime
) -> None:
    """Add a running cycle."""
    row = {"id": cycle_id, "state": "running", "trigger": trigger, "attempt": 1, "created_at": created_at}
    connection.execute(cycles.insert().values(**row, parameters=parameters.model_dump(mode="json")))


def update_cycle(connection: Connection, cycle_id: str, **values: Any) -> None:
    """Set columns of one cycle."""
    connection.execute(update(cycles).where(cycles.c.id == cycle_id).values(**values))


def running_cycles(connection: Connection) -> list[tuple[str, int, str]]:
    """Return (id, attempt, role) of the cycles that have not ended."""
    rows = connection.execute(select(cycles).where(cycles.c.state == "running").order_by(cycles.c.created_at))
    return [(row.id, row.attempt, row.parameters["role"]) for row in rows]


def find_cycle(connection: Connection, cycle_id: str) -> Cycle | None:
    """Return one cycle with its stages."""
    found = connection.execute(select(cycles).where(cycles.c.id == cycle_id)).all()
    return _with_stages(connection, found)[0] if found else None


def recent_cycles(connection: Connection, limit: int) -> list[Cycle]:
    """Return the newest cycles with their stages, newest first."""
    query = select(cycles).order_by(cycles.c.created_at.desc(), cycles.c.id.desc()).limit(limit)
    return _with_stages(connection, connection.execute(query).all())


def is_under_way(connection: Connection, cycle_id: str, *, attempt: int) -> bool:
    """Say whether the cycle runs and `attempt` is the present one; takes its turn, so that it stays so until commit."""
    take_turns(connection, "cycles")
    wanted = select(cycles.c.id).where(cycles.c.id == cycle_id, cycles.c.state == "running")
    return connection.execute(wanted.where(cycles.c.attempt == attempt)).first() is not None


def attempt_of(connection: Connection, cycle_id: str) -> int:
    """Return how often the cycle was started."""
    return int(connection.execute(select(cycles.c.attempt).where(cycles.c.id == cycle_id)).scalar_one())


def stage_id(cycle_id: str, stage: Stage) -> str:
    """Return the id of the row, and of the job, of one stage."""
    return f"{cycle_id}.{stage.value}"


def insert_stage(
    connection: Connection, cycle_id: str, stage: Stage, *, state: str, inputs: dict[str, Any], created_at: datetime
) -> bool:
    """Add a stage unless it is there; say whether it was added."""
    row = {
        "id": stage_id(cycle_id, stage),
        "cycle_id": cycle_id,
        "stage": stage.value,
        "state": state,
        "inputs": inputs,
        "attempts": 0,
        "tries": 0,
        "restarts": 0,
        "created_at": created_at,
    }
    return insert_ignore(connection, stages, [row]) == 1


def find_stage(connection: Connection, job_id: str) -> Row[Any] | None:
    """Return the row of one stage, with the parameters of its cycle."""
    query = select(
        stages, cycles.c.parameters, cycles.c.state.label("cycle_state"), cycles.c.attempt.label("cycle_attempt")
    ).join(cycles)
    return connection.execute(query.where(stages.c.id == job_id)).first()


def update_stage(connection: Connection, job_id: str, **values: Any) -> None:
    """Set columns of one stage."""
    connection.execute(update(stages).where(stages.c.id == job_id).values(**values))


def leased_stages(connection: Connection) -> list[Row[Any]]:
    """Return the stages that some worker holds."""
    return list(
        connection.execute(select(stages).where(stages.c.state == "running", stages.c.lease_token.is_not(None)))
    )


def oldest_queued(connection: Connection, wanted: Iterable[Stage]) -> Row[Any] | None:
    """Return the stage that waits longest among those `wanted`, of a cycle that still runs."""
    query = (
        select(stages, cycles.c.parameters)
        .join(cycles)
        .where(stages.c.state == "queued", cycles.c.state == "running")
        .where(stages.c.stage.in_([stage.value for stage in wanted]))
        .order_by(stages.c.created_at)
        .limit(1)
    )
    return connection.execute(query).first()


def delete_unfinished_stages(connection: Connection, cycle_id: str) -> None:
    """Forget the stages that are not done, so that a retry does them anew; what is done stays."""
    connection.execute(delete(stages).where(stages.c.cycle_id == cycle_id, stages.c.state != "done"))


def delete_stages(connection: Connection, cycle_id: str) -> None:
    """Forget all stages of a cycle, so that a retry begins it anew."""
    connection.execute(delete(stages).where(stages.c.cycle_id == cycle_id))


def erased_since(connection: Connection, moment: datetime) -> bool:
    """Say whether anything was erased at `moment` or later. Who has the turn "cycles" misses no erasure."""
    later = select(erased.c.fingerprint).where(erased.c.erased_at >= moment)
    return connection.execute(later.limit(1)).first() is not None


def snapshot_is_stale(connection: Connection, cycle_id: str) -> bool:
    """Say whether something was erased after the cycle's snapshot was frozen."""
    row = find_stage(connection, stage_id(cycle_id, Stage.SNAPSHOT))
    return row is not None and row.finished_at is not None and erased_since(connection, row.finished_at)


def artifacts_of(connection: Connection, cycle_id: str) -> set[Artifact]:
    """Return what the stages of a cycle made, or go on from."""
    return _named_in(connection, stages.c.cycle_id == cycle_id)


def artifacts_of_others(connection: Connection, cycle_id: str | None) -> set[Artifact]:
    """Return what the stages of all other cycles made, or go on from; of all cycles where `cycle_id` is None."""
    return _named_in(connection, true() if cycle_id is None else stages.c.cycle_id != cycle_id)


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Yield every artifact that a stored record names, however deep."""
    if isinstance(value, list):
        for item in value:
            yield from artifacts_in(item)
    elif isinstance(value, dict):
        if value.keys() == Artifact.model_fields.keys():
            try:
                yield Artifact.model_validate(value)
            except ValidationError:  # of a version that knew other kinds
                return
        else:
            for item in value.values():
                yield from artifacts_in(item)


def results_of(connection: Connection, cycle_id: str) -> dict[str, Any]:
    """Return the records of the finished stages by stage name."""
    query = select(stages.c.stage, stages.c.result).where(stages.c.cycle_id == cycle_id, stages.c.state == "done")
    return {row.stage: row.result for row in connection.execute(query)}


def latest_result(connection: Connection, stage: Stage, *, role: str) -> dict[str, Any] | None:
    """Return the newest record that `stage` made in any cycle for `role`."""
    query = (
        select(stages.c.result, cycles.c.parameters)
        .join(cycles)
        .where(stages.c.stage == stage.value, stages.c.state == "done")
        .order_by(stages.c.finished_at.desc())
    )
    for row in connection.execute(query):
        if row.parameters["role"] == role:
            return dict(row.result)
    return None


def _named_in(connection: Connection, which: ColumnElement[bool]) -> set[Artifact]:
    rows = connection.execute(select(stages.c.result, stages.c.checkpoint).where(which))
    return {artifact for row in rows for value in row for artifact in artifacts_in(value)}


def _with_stages(connection: Connection, rows: Iterable[Row[Any]]) -> list[Cycle]:
    rows = list(rows)
    found: dict[str, dict[str, Row[Any]]] = defaultdict(dict)
    query = select(stages).where(stages.c.cycle_id.in_([row.id for row in rows]))
    for stage in connection.execute(query):
        found[stage.cycle_id][stage.stage] = stage
    return [_cycle(row, found[row.id]) for row in rows]


def _cycle(row: Row[Any], stage_rows: dict[str, Row[Any]]) -> Cycle:
    return Cycle(
        id=row.id,
        state=row.state,
        reason=row.reason,
        trigger=row.trigger,
        parameters=CycleParameters.model_validate(row.parameters),
        created_at=row.created_at,
        finished_at=row.finished_at,
        release_id=row.release_id,
        stages=[_status(stage, stage_rows.get(stage.value)) for stage in Stage],
    )


def _status(stage: Stage, row: Row[Any] | None) -> StageStatus:
    if row is None:
        return StageStatus(stage=stage, state="waiting")
    return StageStatus(
        stage=stage,
        state=row.state,
        worker_id=row.worker_id,
        attempts=row.attempts,
        progress=None if row.progress is None else Progress.model_validate(row.progress),
        spent=None if row.spent is None else Spent.model_validate(row.spent),
        result=row.result,
        error=row.error,
    )
