"""One pass of the loop as a DBOS workflow, a step a stage. The only module that knows DBOS.

Steps are at-least-once: a step that was cut off by a crash runs again, finds by its key what it had begun, and goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dbos import DBOS, DBOSConfig, SetWorkflowID

from everswarm.errors import StageFailedError
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.job import WORKER_STAGES, Stage
from everswarm.server.cycles import repository
from everswarm.server.cycles.stages import conclude, freeze, parameters_under_way, queue_for_review
from everswarm.server.database import Database
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import Storage
from everswarm.settings import ScrubberName

WORKFLOW_VERSION = "1"  # pinned: DBOS recovers only workflows of its own version, and a deploy must not strand them
POLL_SECONDS = 0.25
SCHEDULE_NAME = "weekly-cycle"


class ServerStopping(BaseException):
    """The server stops while a step waits. Not an Exception, so DBOS records nothing and runs the step again later."""


@dataclass
class Context:
    """What the steps need; set once at launch, because DBOS registers plain functions."""

    database: Database
    artifacts: ArtifactStore
    storage: Storage  # of the same artifacts
    margin: float
    scrubber: ScrubberName
    start_scheduled: Callable[[], None]
    stopping: threading.Event = field(default_factory=threading.Event)


_context: Context | None = None


def launch(context: Context, *, system_database_url: str, schedule: str | None) -> None:
    """Start DBOS, which takes up the workflows that a crash cut off. What fails here leaves nothing running behind."""
    global _context  # noqa: PLW0603
    _context = context
    try:
        _launch_engine(system_database_url=system_database_url, schedule=schedule)
    except BaseException:
        context.stopping.set()
        DBOS.destroy(workflow_completion_timeout_sec=0)
        raise


def start_written_down() -> None:
    """Start the workflows of the cycles that are written down as running; those that are started already go on."""
    with _current().database.read() as connection:
        running = repository.running_cycles(connection)
    for cycle_id, attempt, _role in running:
        start(cycle_id, attempt=attempt)


def _launch_engine(*, system_database_url: str, schedule: str | None) -> None:
    DBOS(
        config=DBOSConfig(
            name="everswarm",
            system_database_url=system_database_url,
            application_version=WORKFLOW_VERSION,
            executor_id="everswarm-0",
            log_level="ERROR",
            max_executor_threads=8,
            enable_otlp=False,
        )
    )
    DBOS.launch()
    if schedule is None:
        if DBOS.get_schedule(SCHEDULE_NAME) is not None:
            DBOS.delete_schedule(SCHEDULE_NAME)
    else:
        DBOS.apply_schedules(
            [{"schedule_name": SCHEDULE_NAME, "workflow_fn": scheduled_cycle, "schedule": schedule, "context": None}]
        )


def shut_down() -> None:
    """Let waiting steps go, and stop DBOS. What was not finished goes on at the next launch."""
    if _context is not None:
        _context.stopping.set()
        time.sleep(POLL_SECONDS)  # the waiting steps notice before their database connections go
        DBOS.destroy(workflow_completion_timeout_sec=0)


def start(cycle_id: str, *, attempt: int) -> None:
    """Start the workflow of one attempt of a cycle; again is harmless."""
    workflow_id = f"cycle-{cycle_id}-{attempt}"
    if DBOS.get_workflow_status(workflow_id) is None:
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(run_cycle, cycle_id, attempt)


@DBOS.workflow(name="run_cycle")
def run_cycle(cycle_id: str, attempt: int) -> None:
    """Snapshot → curate → label → distill → export → evaluate → release."""
    try:
        snapshot_step(cycle_id, attempt)
        for stage in WORKER_STAGES:
            work_step(cycle_id, attempt, stage.value)
            if stage is Stage.CURATE:
                review_step(cycle_id)
        release_step(cycle_id, attempt)
    except Exception as error:
        failed_step(cycle_id, attempt, str(error))


@DBOS.workflow(name="scheduled_cycle")
def scheduled_cycle(_scheduled_at: datetime, _schedule_context: Any) -> None:
    """Start a cycle because its time has come."""
    scheduled_step()


@DBOS.step(name="scheduled")
def scheduled_step() -> None:
    """Ask for a cycle as a person would."""
    _current().start_scheduled()


@DBOS.step(name="snapshot")
def snapshot_step(cycle_id: str, attempt: int) -> None:
    """Freeze the feedback, once."""
    context = _current()
    freeze(context.database, context.artifacts, context.storage, cycle_id, attempt=attempt, scrubber=context.scrubber)


@DBOS.step(name="work")
def work_step(cycle_id: str, attempt: int, stage_name: str) -> None:
    """Queue one stage for a worker, unless that was done before, and wait until it ends."""
    context, stage = _current(), Stage(stage_name)
    with context.database.transaction() as connection:
        parameters_under_way(connection, cycle_id, attempt=attempt)
        inputs = repository.results_of(connection, cycle_id)
        repository.insert_stage(
            connection, cycle_id, stage, state="queued", inputs=inputs, created_at=datetime.now(UTC)
        )
    while True:
        with context.database.read() as connection:
            row = repository.find_stage(connection, repository.stage_id(cycle_id, stage))
        if row is None or row.cycle_state != "running" or row.cycle_attempt != attempt:
            raise StageFailedError("The cycle was cancelled, or a retry took over.")
        if row.state == "done":
            return
        if row.state == "failed":
            raise StageFailedError(f"{stage}: {row.error}")
        if context.stopping.wait(POLL_SECONDS):
            raise ServerStopping


@DBOS.step(name="review")
def review_step(cycle_id: str) -> None:
    """Put what curation set aside into the review queue."""
    context = _current()
    queue_for_review(context.database, context.artifacts, cycle_id)


@DBOS.step(name="release")
def release_step(cycle_id: str, attempt: int) -> None:
    """Decide, and publish if the gate says so."""
    context = _current()
    conclude(context.database, context.artifacts, cycle_id, attempt=attempt, margin=context.margin)
    with context.database.read() as connection:
        others_run = bool(repository.running_cycles(connection))
    if not others_run:  # a finished cycle resumes nothing
        context.artifacts.delete_kind(ArtifactKind.CHECKPOINT)


@DBOS.step(name="failed")
def failed_step(cycle_id: str, attempt: int, reason: str) -> None:
    """Write down why the cycle ended, unless it was cancelled or a retry took over."""
    with _current().database.transaction() as connection:
        if repository.is_under_way(connection, cycle_id, attempt=attempt):
            repository.update_cycle(connection, cycle_id, state="failed", reason=reason, finished_at=datetime.now(UTC))


def _current() -> Context:
    if _context is None:
        raise StageFailedError("The cycles were not launched.")
    return _context
