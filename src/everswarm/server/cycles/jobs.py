"""Leases: the right to do one stage for a while.

A worker that is silent longer than its lease loses the job to the next one, and its late words are refused by the
token (409). A worker that asks again has restarted, so what it held goes back to the queue at once. A restart uses up
no try, but restarts are bounded too: some stages end their worker. A new checkpoint sets both counts back.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row

from everswarm.errors import BadRequestError, ConflictError, NotFoundError
from everswarm.schemas.adapter import Adapter, ExportedAdapter
from everswarm.schemas.base import Record
from everswarm.schemas.dataset import Dataset
from everswarm.schemas.evaluation import Evaluation
from everswarm.schemas.job import Beat, CycleParameters, Job, JobDone, JobFailed, Lease, Stage
from everswarm.schemas.targets import SoftTargets
from everswarm.server.cycles import repository
from everswarm.server.database import Database, take_turns
from everswarm.server.feedback.reading import storable
from everswarm.settings import WorkerSettings

RESTARTS_LIMIT = 10  # of workers in one stage, with no new checkpoint between; then the stage itself is to blame

RESULT_OF_STAGE: dict[Stage, type[Record]] = {
    Stage.CURATE: Dataset,
    Stage.LABEL: SoftTargets,
    Stage.DISTILL: Adapter,
    Stage.EXPORT: ExportedAdapter,
    Stage.EVALUATE: Evaluation,
}


def lease_job(database: Database, *, worker_id: str, stages: Iterable[Stage], limits: WorkerSettings) -> Lease | None:
    """Give the job that waits longest to `worker_id`, or None when there is none."""
    now = datetime.now(UTC)
    with database.transaction() as connection:
        take_turns(connection, "cycles")
        _return_lost_leases(connection, now=now, asking=worker_id, attempts_limit=limits.attempts)
        row = repository.oldest_queued(connection, stages)
        if row is None:
            return None
        token = secrets.token_hex(16)
        repository.update_stage(
            connection,
            row.id,
            state="running",
            worker_id=worker_id,
            lease_token=token,
            leased_until=now + timedelta(seconds=limits.lease_seconds),
            attempts=row.attempts + 1,
        )
    return Lease(
        job=_job(row),
        token=token,
        expires_in_seconds=limits.lease_seconds,
        beat_every_seconds=limits.beat_seconds,
    )


def beat(database: Database, job_id: str, sent: Beat, *, limits: WorkerSettings) -> None:
    """Extend the lease and keep what the worker reports.

    Raises:
        ConflictError: the lease is another's by now, or the cycle has ended.
    """
    with database.transaction() as connection:
        take_turns(connection, "cycles")
        row = _held(connection, job_id, sent.token)
        values: dict[str, Any] = {"leased_until": datetime.now(UTC) + timedelta(seconds=limits.lease_seconds)}
        if sent.progress is not None:
            values["progress"] = sent.progress.model_dump(mode="json")
        if sent.checkpoint is not None:
            values["checkpoint"] = sent.checkpoint
            if sent.checkpoint != row.checkpoint:
                values |= {"tries": 0, "restarts": 0}
        repository.update_stage(connection, job_id, **values)


def finish(database: Database, job_id: str, done: JobDone) -> None:
    """Store the stage's record. The same call again is fine: the answer to the first may have been lost.

    Raises:
        BadRequestError: the record is not what this stage makes.
        ConflictError: the lease is another's by now, or the cycle has ended.
    """
    with database.transaction() as connection:
        take_turns(connection, "cycles")
        row = _existing(connection, job_id)
        if row.state == "done" and row.lease_token == done.token:
            return
        _held(connection, job_id, done.token)
        repository.update_stage(
            connection,
            job_id,
            state="done",
            result=_checked(Stage(row.stage), done.result),
            spent=done.spent.model_dump(mode="json"),
            error=None,
            leased_until=None,
            finished_at=datetime.now(UTC),
        )


def fail(database: Database, job_id: str, failed: JobFailed, *, limits: WorkerSettings) -> None:
    """Put the job back into the queue, or end it when another try would not help or all tries are used."""
    with database.transaction() as connection:
        take_turns(connection, "cycles")
        row = _held(connection, job_id, failed.token)
        tries = row.tries + 1
        over = failed.final or tries >= limits.attempts
        _give_up(connection, row, error=storable(failed.error), over=over, tries=tries)


def _return_lost_leases(connection: Connection, *, now: datetime, asking: str, attempts_limit: int) -> None:
    for row in repository.leased_stages(connection):
        silent = row.leased_until is not None and row.leased_until < now
        if row.worker_id == asking:
            restarts = row.restarts + 1
            error = f"The worker {asking} ended in the middle; {restarts} of {RESTARTS_LIMIT} restarts are used."
            _give_up(connection, row, error=error, over=restarts >= RESTARTS_LIMIT, restarts=restarts)
        elif silent:
            tries = row.tries + 1
            error = f"The worker {row.worker_id} stopped answering; {tries} of {attempts_limit} tries are used."
            _give_up(connection, row, error=error, over=tries >= attempts_limit, tries=tries)


def _give_up(connection: Connection, row: Row[Any], *, error: str | None, over: bool, **counts: int) -> None:
    repository.update_stage(
        connection,
        row.id,
        state="failed" if over else "queued",
        error=error,
        lease_token=None,
        leased_until=None,
        finished_at=datetime.now(UTC) if over else None,
        **counts,
    )


def _existing(connection: Connection, job_id: str) -> Row[Any]:
    row = repository.find_stage(connection, job_id)
    if row is None:
        raise NotFoundError(f"There is no job {job_id}. Lease a job first: POST /api/jobs/lease.")
    return row


def _held(connection: Connection, job_id: str, token: str) -> Row[Any]:
    row = _existing(connection, job_id)
    if row.cycle_state != "running":
        raise ConflictError(f"The cycle of job {job_id} is {row.cycle_state}. Drop the job and lease another.")
    if row.state != "running" or not secrets.compare_digest(row.lease_token or "", token):
        raise ConflictError(
            f"The lease of job {job_id} is no longer yours: it expired, or the job is {row.state}. "
            "Drop the job and lease another."
        )
    return row


def _checked(stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
    kind = RESULT_OF_STAGE[stage]
    try:
        return kind.model_validate(result).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequestError(
            f"The result of stage {stage} is not a {kind.__name__}: {where}: {first['msg']}. "
            "Worker and server must be of the same version."
        ) from error


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        cycle_id=row.cycle_id,
        stage=Stage(row.stage),
        parameters=CycleParameters.model_validate(row.parameters),
        inputs=row.inputs,
        checkpoint=row.checkpoint,
        attempt=row.attempts + 1,
    )
