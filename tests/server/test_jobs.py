"""Leases: who may do a job, for how long, and what happens to late words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Row

from everswarm.errors import BadRequestError, ConflictError, NotFoundError
from everswarm.schemas.job import (
    WORKER_STAGES,
    Beat,
    CycleParameters,
    JobDone,
    JobFailed,
    Lease,
    Progress,
    Spent,
    Stage,
)
from everswarm.server.cycles import jobs, repository
from everswarm.server.database import Database
from everswarm.settings import WorkerSettings

LIMITS = WorkerSettings(lease_seconds=120, beat_seconds=30, attempts=3)
CARD = {
    "read": 10,
    "dropped": [],
    "examples": {"train": 8, "validation": 1, "test": 1},
    "users": {"train": 1, "validation": 1, "test": 1},
    "shares": {"train": 0.8, "validation": 0.1, "test": 0.1},
    "sources": {"correction": 10},
    "seed": 0,
    "parents": ["a" * 64],
}
DATASET = {
    "data": {"sha256": "b" * 64, "size_bytes": 1, "kind": "dataset", "name": "dataset.parquet"},
    "card": CARD,
    "split_of_user": {"ann": "train"},
}


@pytest.fixture
def queued(database: Database) -> Database:
    with database.transaction() as connection:
        now = datetime.now(UTC)
        parameters = CycleParameters(student="tiny")
        repository.insert_cycle(connection, "c1", parameters=parameters, trigger="manual", created_at=now)
        repository.insert_stage(connection, "c1", Stage.CURATE, state="queued", inputs={"snapshot": {}}, created_at=now)
    return database


def take(database: Database, worker_id: str = "w1") -> Lease | None:
    return jobs.lease_job(database, worker_id=worker_id, stages=WORKER_STAGES, limits=LIMITS)


def held(database: Database, worker_id: str = "w1") -> Lease:
    lease = take(database, worker_id)
    assert lease is not None
    return lease


def expire(database: Database, job_id: str) -> None:
    with database.transaction() as connection:
        repository.update_stage(connection, job_id, leased_until=datetime.now(UTC) - timedelta(seconds=1))


def test_a_job_is_leased_to_one_worker_only(queued: Database) -> None:
    assert held(queued).job.inputs == {"snapshot": {}}
    assert take(queued, "w2") is None


def test_expired_lease_returns_job_to_queue_with_its_checkpoint(queued: Database) -> None:
    first = held(queued)
    jobs.beat(queued, first.job.id, Beat(token=first.token, checkpoint={"step": 3}), limits=LIMITS)
    expire(queued, first.job.id)
    second = held(queued, "w2")
    assert (second.job.checkpoint, second.job.attempt) == ({"step": 3}, 2)
    assert second.token != first.token


def test_late_words_of_the_first_holder_are_refused(queued: Database) -> None:
    first = held(queued)
    expire(queued, first.job.id)
    held(queued, "w2")
    with pytest.raises(ConflictError, match="no longer yours"):
        jobs.beat(queued, first.job.id, Beat(token=first.token), limits=LIMITS)
    with pytest.raises(ConflictError):
        jobs.finish(queued, first.job.id, JobDone(token=first.token, result=DATASET, spent=Spent()))


def test_a_beat_extends_the_lease_and_keeps_progress(queued: Database) -> None:
    lease = held(queued)
    jobs.beat(queued, lease.job.id, Beat(token=lease.token, progress=Progress(done=1, total=2)), limits=LIMITS)
    with queued.read() as connection:
        row = repository.find_stage(connection, lease.job.id)
    assert row is not None
    assert row.progress["done"] == 1
    assert row.leased_until > datetime.now(UTC) + timedelta(seconds=100)


def test_a_worker_that_asks_again_has_restarted_and_gets_its_job_back_at_once(queued: Database) -> None:
    first = held(queued)
    again = held(queued)
    assert (again.job.id, again.job.attempt) == (first.job.id, 2)


def row_of(database: Database) -> Row[Any]:
    with database.read() as connection:
        row = repository.find_stage(connection, "c1.curate")
    assert row is not None
    return row


def test_a_job_fails_when_all_tries_are_used(queued: Database) -> None:
    for number in range(LIMITS.attempts):
        expire(queued, held(queued, f"w{number}").job.id)
    assert take(queued, "another") is None
    assert row_of(queued).state == "failed"
    assert "3 of 3 tries" in row_of(queued).error


def test_restarts_of_the_same_worker_use_up_no_tries_but_end_too(queued: Database) -> None:
    for number in range(jobs.RESTARTS_LIMIT):
        assert held(queued).job.attempt == number + 1
    assert take(queued) is None
    assert row_of(queued).state == "failed"
    assert "10 of 10 restarts" in row_of(queued).error


def test_a_new_checkpoint_gives_the_tries_back_and_the_same_one_does_not(queued: Database) -> None:
    for step in (1, 2, 3, 4, 4, 4):
        lease = held(queued, f"w{step}")
        jobs.beat(queued, lease.job.id, Beat(token=lease.token, checkpoint={"step": step}), limits=LIMITS)
        jobs.fail(queued, lease.job.id, JobFailed(token=lease.token, error="no"), limits=LIMITS)
    assert (row_of(queued).state, row_of(queued).attempts) == ("failed", 6)


def test_done_is_idempotent_for_the_same_holder(queued: Database) -> None:
    lease = held(queued)
    done = JobDone(token=lease.token, result=DATASET, spent=Spent(cpu_seconds=2.0))
    jobs.finish(queued, lease.job.id, done)
    jobs.finish(queued, lease.job.id, done)
    with queued.read() as connection:
        assert repository.results_of(connection, "c1")["curate"]["data"]["sha256"] == "b" * 64


def test_a_result_of_the_wrong_shape_is_refused_and_the_job_stays_leased(queued: Database) -> None:
    lease = held(queued)
    with pytest.raises(BadRequestError, match="not a Dataset"):
        jobs.finish(queued, lease.job.id, JobDone(token=lease.token, result={"x": 1}, spent=Spent()))
    jobs.finish(queued, lease.job.id, JobDone(token=lease.token, result=DATASET, spent=Spent()))


@pytest.mark.parametrize(("final", "state"), [(False, "queued"), (True, "failed")])
def test_a_failure_is_tried_again_unless_it_is_final(queued: Database, final: bool, state: str) -> None:
    lease = held(queued)
    jobs.fail(queued, lease.job.id, JobFailed(token=lease.token, error="no", final=final), limits=LIMITS)
    with queued.read() as connection:
        row = repository.find_stage(connection, lease.job.id)
    assert row is not None
    assert (row.state, row.error) == (state, "no")


def test_a_cancelled_cycle_refuses_its_worker(queued: Database) -> None:
    lease = held(queued)
    with queued.transaction() as connection:
        repository.update_cycle(connection, "c1", state="cancelled")
    with pytest.raises(ConflictError, match="cancelled"):
        jobs.beat(queued, lease.job.id, Beat(token=lease.token), limits=LIMITS)


def test_an_unknown_job_says_what_to_do(queued: Database) -> None:
    with pytest.raises(NotFoundError, match="Lease a job first"):
        jobs.beat(queued, "nope", Beat(token="x"), limits=LIMITS)
