"""`/api/cycles` for people, `/api/jobs` for workers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Query, Response
from pydantic import ValidationError

from everswarm.errors import BadRequestError
from everswarm.schemas.job import (
    Beat,
    Cycle,
    CycleParameters,
    JobDone,
    JobFailed,
    Lease,
    LeaseRequest,
    Stage,
    StageStatus,
)
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, PrincipalDep, require
from everswarm.server.cycles import jobs
from everswarm.server.cycles.service import CyclesDep

router = APIRouter(tags=["cycles"])
admin = [Depends(require(Scope.ADMIN))]
worker = [Depends(require(Scope.WORKER))]


@router.post("/api/cycles", status_code=201, dependencies=admin)
def start_cycle(cycles: CyclesDep, wish: Annotated[dict[str, Any] | None, Body()] = None) -> Cycle:
    """Start a cycle. The body may name fields of `CycleParameters`; the settings give the rest."""
    wish = dict(wish or {})
    trigger = str(wish.pop("trigger", "manual"))[:32]
    try:
        parameters = CycleParameters.model_validate({**cycles.defaults().model_dump(), **wish})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequestError(
            f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}. "
            f"A cycle takes: {', '.join(CycleParameters.model_fields)}."
        ) from error
    return cycles.request_cycle(parameters, trigger=trigger)


@router.get("/api/cycles")
def list_cycles(
    cycles: CyclesDep, principal: PrincipalDep, limit: Annotated[int, Query(ge=1, le=200)] = 20
) -> list[Cycle]:
    """The newest cycles, newest first."""
    return [_readable(cycle, principal) for cycle in cycles.recent(limit=limit)]


@router.get("/api/cycles/{cycle_id}")
def show_cycle(cycles: CyclesDep, principal: PrincipalDep, cycle_id: str) -> Cycle:
    """One cycle with its stages."""
    return _readable(cycles.cycle(cycle_id), principal)


@router.post("/api/cycles/{cycle_id}/retry", dependencies=admin)
def retry_cycle(cycles: CyclesDep, cycle_id: str) -> Cycle:
    """Go on with a failed or cancelled cycle."""
    return cycles.retry(cycle_id)


@router.post("/api/cycles/{cycle_id}/cancel", dependencies=admin)
def cancel_cycle(cycles: CyclesDep, cycle_id: str) -> Cycle:
    """End a running cycle."""
    return cycles.cancel(cycle_id)


@router.post("/api/jobs/lease", dependencies=worker, responses={204: {"description": "nothing to do"}})
def lease_job(cycles: CyclesDep, wanted: LeaseRequest, response: Response) -> Lease | None:
    """Take the job that waits longest. A worker that asks again gives back what it held."""
    lease = jobs.lease_job(
        cycles.database, worker_id=wanted.worker_id, stages=wanted.stages, limits=cycles.settings.worker
    )
    if lease is None:
        response.status_code = 204
    return lease


@router.post("/api/jobs/{job_id}/beat", status_code=204, dependencies=worker)
def beat(cycles: CyclesDep, job_id: str, sent: Beat) -> None:
    """Still at it; 409 when the lease is lost."""
    jobs.beat(cycles.database, job_id, sent, limits=cycles.settings.worker)


@router.post("/api/jobs/{job_id}/done", status_code=204, dependencies=worker)
def job_done(cycles: CyclesDep, job_id: str, done: JobDone) -> None:
    """Hand in the stage's record."""
    jobs.finish(cycles.database, job_id, done)


@router.post("/api/jobs/{job_id}/failed", status_code=204, dependencies=worker)
def job_failed(cycles: CyclesDep, job_id: str, failed: JobFailed) -> None:
    """Say why the stage did not succeed."""
    jobs.fail(cycles.database, job_id, failed, limits=cycles.settings.worker)


def _readable(cycle: Cycle, principal: Principal) -> Cycle:
    """Records name people and quote what they asked: users and devices see the scores and nothing else of them."""
    if principal.scope in (Scope.ADMIN, Scope.WORKER):
        return cycle
    return cycle.model_copy(update={"stages": [_without_people(stage) for stage in cycle.stages]})


def _without_people(status: StageStatus) -> StageStatus:
    result = status.result
    if status.stage == Stage.EVALUATE and result is not None:
        return status.model_copy(update={"result": {**result, "answers": []}})
    return status.model_copy(update={"result": None})
