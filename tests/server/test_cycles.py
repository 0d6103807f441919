"""The durable workflow with real DBOS on a real file; the worker's stages are told, not computed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.stage_results import result_of

from everswarm.errors import ConflictError, NotEnoughFeedbackError, NotFoundError, StageFailedError
from everswarm.schemas.dataset import Snapshot
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.schemas.job import WORKER_STAGES, Cycle, JobDone, JobFailed, Lease, Spent, Stage
from everswarm.server.cycles import jobs, repository, workflow
from everswarm.server.cycles.service import CycleService
from everswarm.server.cycles.stages import conclude
from everswarm.server.database import Database
from everswarm.server.erasure import erase
from everswarm.server.feedback.batches import store_batch
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import open_storage
from everswarm.settings import Settings

PATIENCE_SECONDS = 20.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def service(database: Database, settings: Settings, tmp_path: Path) -> Iterator[CycleService]:
    made = start(database, settings)
    yield made
    made.stop()


def start(database: Database, settings: Settings) -> CycleService:
    service = CycleService(database, ArtifactStore(settings.artifacts_root, database), settings)
    service.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while service.state == "starting" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.state == "ready"
    return service


def give_feedback(database: Database, count: int, *, people: int = 5) -> None:
    records = [
        JudgedInteraction(
            id=f"i{number}",
            device_id=f"user{number % people}",
            timestamp=datetime.now(UTC),
            messages=[Message(role="user", content=f"question {number}")],
            response="no",
            model="m",
            correction="yes",
            consent=True,
        )
        for number in range(count)
    ]
    store_batch(database, records, source="import")


def next_lease(service: CycleService) -> Lease:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        lease = jobs.lease_job(service.database, worker_id="w", stages=WORKER_STAGES, limits=service.settings.worker)
        if lease is not None:
            return lease
        time.sleep(0.05)
    raise AssertionError("no job was queued")


def finish(service: CycleService, lease: Lease) -> None:
    done = JobDone(token=lease.token, result=result_of(lease.job.stage), spent=Spent(cpu_seconds=1.0))
    jobs.finish(service.database, lease.job.id, done)


def ended(service: CycleService, cycle_id: str) -> Cycle:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        cycle = service.cycle(cycle_id)
        if cycle.state != "running":
            return cycle
        time.sleep(0.05)
    raise AssertionError("the cycle did not end")


def test_a_cycle_walks_its_stages_in_order_and_ends_with_a_release(service: CycleService, database: Database) -> None:
    give_feedback(database, 30)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    seen = []
    for _ in WORKER_STAGES:
        lease = next_lease(service)
        seen.append(lease.job.stage)
        assert list(lease.job.inputs) == [Stage.SNAPSHOT, *seen[:-1]]
        finish(service, lease)
    done = ended(service, cycle.id)
    assert seen == list(WORKER_STAGES)
    assert done.state == "released"
    assert done.release_id is not None
    assert [stage.state for stage in done.stages] == ["done"] * 7


def test_a_stopped_server_goes_on_with_the_same_stage(database: Database, settings: Settings) -> None:
    give_feedback(database, 30)
    service = start(database, settings)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    finish(service, next_lease(service))
    label = next_lease(service)
    service.stop()
    finish(service, label)  # the worker went on while the server was away
    service = start(database, settings)
    try:
        for _ in range(3):
            finish(service, next_lease(service))
        assert ended(service, cycle.id).state == "released"
    finally:
        service.stop()


def test_too_little_feedback_says_how_much_is_needed(service: CycleService, database: Database) -> None:
    give_feedback(database, 5)
    with pytest.raises(NotEnoughFeedbackError, match=r"at least 24 .* there are 5 \(of 5 judged\).* 19 more"):
        service.request_cycle(service.defaults(), trigger="manual")
    assert service.recent(limit=5) == []


def test_one_cycle_a_role_at_a_time(service: CycleService, database: Database) -> None:
    give_feedback(database, 30)
    first = service.request_cycle(service.defaults(), trigger="manual")
    with pytest.raises(ConflictError, match=f"everswarm cycle cancel {first.id}"):
        service.request_cycle(service.defaults(), trigger="manual")


def test_a_failed_stage_fails_the_cycle_and_a_retry_keeps_what_was_done(
    service: CycleService, database: Database
) -> None:
    give_feedback(database, 30)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    finish(service, next_lease(service))
    label = next_lease(service)
    failure = JobFailed(token=label.token, error="NaN in the logits", final=True)
    jobs.fail(database, label.job.id, failure, limits=service.settings.worker)
    failed = ended(service, cycle.id)
    assert (failed.state, failed.reason) == ("failed", "label: NaN in the logits")
    service.retry(cycle.id)
    for stage in WORKER_STAGES[1:]:
        lease = next_lease(service)
        assert lease.job.stage == stage
        finish(service, lease)
    assert ended(service, cycle.id).state == "released"


def test_a_retry_after_an_erasure_begins_anew_from_the_snapshot(
    service: CycleService, database: Database, settings: Settings
) -> None:
    give_feedback(database, 30)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    curate = next_lease(service)
    finish(service, curate)
    label = next_lease(service)
    failure = JobFailed(token=label.token, error="NaN in the logits", final=True)
    jobs.fail(database, label.job.id, failure, limits=service.settings.worker)
    ended(service, cycle.id)
    erase(database, open_storage(settings.artifacts_root), user="user1")
    service.retry(cycle.id)
    again = next_lease(service)
    assert again.job.stage == Stage.CURATE
    assert list(again.job.inputs) == [Stage.SNAPSHOT]
    before, after = (Snapshot.model_validate(lease.job.inputs[Stage.SNAPSHOT]) for lease in (curate, again))
    assert (before.interactions, after.interactions) == (30, 24)
    assert service.artifacts.find(before.data.sha256) is None
    with service.artifacts.open(after.data.sha256) as lines:
        assert database.seal.pseudonym("user1").encode() not in lines.read()
    finish(service, again)
    for _ in WORKER_STAGES[1:]:
        finish(service, next_lease(service))
    assert ended(service, cycle.id).state == "released"


def test_an_erasure_while_the_snapshot_is_taken_is_not_undone(
    service: CycleService, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_feedback(database, 30)
    count, put_file = [0], ArtifactStore.put_file

    def erase_and_put(self: ArtifactStore, *arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == 1:
            erase(database, open_storage(settings.artifacts_root), user="user1")
        return put_file(self, *arguments, **options)

    monkeypatch.setattr(ArtifactStore, "put_file", erase_and_put)
    service.request_cycle(service.defaults(), trigger="manual")
    snapshot = Snapshot.model_validate(next_lease(service).job.inputs[Stage.SNAPSHOT])
    assert (snapshot.interactions, count[0]) == (24, 2)


def test_a_cancelled_cycle_stays_cancelled(service: CycleService, database: Database) -> None:
    give_feedback(database, 30)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    next_lease(service)
    assert service.cancel(cycle.id).state == "cancelled"
    time.sleep(1.0)  # the waiting step notices and must not call it failed
    assert service.cycle(cycle.id).state == "cancelled"
    with pytest.raises(ConflictError):
        service.cancel(cycle.id)


def test_a_cycle_cancelled_before_its_release_is_neither_released_nor_failed(
    service: CycleService, database: Database
) -> None:
    give_feedback(database, 30)
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    for _ in WORKER_STAGES[:-1]:
        finish(service, next_lease(service))
    next_lease(service)
    service.cancel(cycle.id)
    with database.transaction() as connection:
        for stage in WORKER_STAGES:
            repository.update_stage(
                connection, repository.stage_id(cycle.id, stage), result=result_of(stage), state="done"
            )
    with pytest.raises(StageFailedError, match="it was cancelled"):
        conclude(database, service.artifacts, cycle.id, attempt=1, margin=0.01)
    service.retry(cycle.id)
    with pytest.raises(StageFailedError, match="Attempt 1"):
        conclude(database, service.artifacts, cycle.id, attempt=1, margin=0.01)
    workflow.failed_step(cycle.id, 1, "late words")
    assert ended(service, cycle.id).state == "released"


def test_a_cycle_requested_while_the_engine_launches_is_started(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_feedback(database, 30)
    service = CycleService(database, ArtifactStore(settings.artifacts_root, database), settings)
    launch = workflow.launch

    def launch_and_request(*arguments: Any, **options: Any) -> None:
        launch(*arguments, **options)
        service.request_cycle(service.defaults(), trigger="manual")

    monkeypatch.setattr(workflow, "launch", launch_and_request)
    service.start()
    try:
        assert next_lease(service).job.stage == Stage.CURATE
    finally:
        service.stop()


def test_an_engine_that_cannot_be_launched_is_shut_down(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    destroyed: list[bool] = []
    monkeypatch.setattr(workflow.DBOS, "destroy", lambda **_options: destroyed.append(True))
    monkeypatch.setattr(workflow.DBOS, "launch", lambda: 1 / 0)
    service = CycleService(database, ArtifactStore(settings.artifacts_root, database), settings)
    service.start()
    service.stop()
    monkeypatch.undo()
    workflow.DBOS.destroy(workflow_completion_timeout_sec=0)
    assert (service.state, destroyed) == ("failed", [True])


def test_too_few_people_are_told_before_anything_starts(service: CycleService, database: Database) -> None:
    give_feedback(database, 30, people=2)
    with pytest.raises(NotEnoughFeedbackError, match=r"of at least 3 people; there are 30 .* of 2 people"):
        service.request_cycle(service.defaults(), trigger="manual")


def test_an_unknown_cycle_says_how_to_list_them(service: CycleService) -> None:
    with pytest.raises(NotFoundError, match="everswarm cycle list"):
        service.retry("nope")


def test_the_cron_setting_starts_a_cycle(database: Database, settings: Settings) -> None:
    give_feedback(database, 30)
    every_second = settings.model_copy(update={"cycle": settings.cycle.model_copy(update={"schedule": "* * * * * *"})})
    service = start(database, every_second)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not service.recent(limit=1) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert service.recent(limit=1)[0].trigger == "schedule"
    finally:
        service.stop()
