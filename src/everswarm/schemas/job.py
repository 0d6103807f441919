"""A unit of training work, and the right to do it for a while."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from everswarm.schemas.base import Record, Timestamp
from everswarm.settings import CurationRules, TeacherSettings


class Stage(StrEnum):
    """The stages of a cycle, in order. `snapshot` and `release` happen in the server, the others in a worker."""

    SNAPSHOT = "snapshot"
    CURATE = "curate"
    LABEL = "label"
    DISTILL = "distill"
    EXPORT = "export"
    EVALUATE = "evaluate"
    RELEASE = "release"


WORKER_STAGES = (Stage.CURATE, Stage.LABEL, Stage.DISTILL, Stage.EXPORT, Stage.EVALUATE)


class Progress(Record):
    """How far a stage is. `total` is 0 while it is not known."""

    done: int = 0
    total: int = 0
    note: str = Field(default="", max_length=300)


class CycleParameters(Record):
    """What a cycle was asked to do; fixed when it starts."""

    student: str
    role: str = "ultralight"
    recipe: str = "seed"
    teachers: list[TeacherSettings] = Field(default_factory=lambda: [TeacherSettings()], min_length=1)
    epochs: int | None = Field(default=None, ge=1, le=20)  # instead of the recipe's
    seed: int = 0
    train_examples: int | None = Field(default=None, ge=8)  # cap on the training split
    minimum_examples: int = Field(default=24, ge=8)  # below this a cycle refuses
    curation: CurationRules = CurationRules()
    evaluation_answers: int = Field(default=12, ge=0)  # held-out questions answered for BLEU and ROUGE-L


class Job(Record):
    """One stage of one cycle, for a worker. `inputs` holds the records of the earlier stages by stage name."""

    id: str
    cycle_id: str
    stage: Stage
    parameters: CycleParameters
    inputs: dict[str, Any]
    checkpoint: dict[str, Any] | None = None  # what the last holder of the lease left behind
    attempt: int = 1


class LeaseRequest(Record):
    """`POST /api/jobs/lease`. A worker that asks again has lost what it held before."""

    worker_id: str = Field(min_length=1, max_length=100)
    stages: list[Stage] = Field(default_factory=lambda: list(WORKER_STAGES))


class Lease(Record):
    """The right to do `job` until `expires_in_seconds` after the last beat. `token` proves it."""

    job: Job
    token: str
    expires_in_seconds: int
    beat_every_seconds: int


class Beat(Record):
    """`POST /api/jobs/{id}/beat`: still at it."""

    token: str
    progress: Progress | None = None
    checkpoint: dict[str, Any] | None = None


class Spent(Record):
    """What a stage cost, over all processes of its child."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0


class JobDone(Record):
    """`POST /api/jobs/{id}/done`: the stage's record."""

    token: str
    result: dict[str, Any]
    spent: Spent


class JobFailed(Record):
    """`POST /api/jobs/{id}/failed`. `final` means that another try would fail the same way."""

    token: str
    error: str = Field(max_length=4000)
    final: bool = False


class StageStatus(Record):
    """One line of the cycle's table."""

    stage: Stage
    state: str  # waiting, queued, running, done, failed
    worker_id: str | None = None
    attempts: int = 0
    progress: Progress | None = None
    spent: Spent | None = None
    result: dict[str, Any] | None = None
    error: str | None = None


class Cycle(Record):
    """One pass of the loop for one student."""

    id: str
    state: str  # running, released, held, failed, cancelled
    reason: str | None
    trigger: str  # manual, schedule, demo
    parameters: CycleParameters
    created_at: Timestamp
    finished_at: Timestamp | None
    release_id: str | None
    stages: list[StageStatus]
