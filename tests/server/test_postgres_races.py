"""Two at the same time on Postgres, where SQLite has one writer: decisions that rest on what was read stay true."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.fakes.stage_results import result_of

from everswarm.errors import ConflictError, EverswarmError, ForbiddenError, StageFailedError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.schemas.job import WORKER_STAGES, CycleParameters, JobDone, Lease, Spent, Stage
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import Device, DeviceEnrolment, TrainingFeedback
from everswarm.server.auth import Principal, create_key, ensure_first_admin_key, list_keys, revoke_key
from everswarm.server.cycles import jobs, repository
from everswarm.server.cycles.service import CycleService
from everswarm.server.cycles.stages import conclude
from everswarm.server.database import Database, take_turns
from everswarm.server.erasure.repository import delete_interactions
from everswarm.server.feedback import accept_training_feedback, store_batch
from everswarm.server.feedback.drafting import Incoming, Submission, draft
from everswarm.server.feedback.senders import Claims
from everswarm.server.feedback.storing import store_together
from everswarm.server.fleet import enrol_device, publish_release, set_base
from everswarm.server.fleet.service import list_devices
from everswarm.server.registry.service import ArtifactStore
from everswarm.settings import Settings, WorkerSettings

pytestmark = pytest.mark.postgres

PATIENCE_SECONDS = 30.0
LIMITS = WorkerSettings(lease_seconds=120, beat_seconds=30, attempts=3)
BASE = Artifact(sha256="a" * 64, size_bytes=1, kind=ArtifactKind.BASE_GGUF, name="base.gguf")


@pytest.fixture
def database(postgres_database: Database) -> Database:
    return postgres_database


def at_once(database: Database, table: str, *calls: Callable[[], Any]) -> list[Any]:
    """Make `calls`, each in a thread, so that all have read what they read before any of them writes to `table`.

    Returns what each gave, or its error.
    """
    found: list[Any] = [None] * len(calls)

    def make(number: int) -> None:
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=make, args=(number,)) for number in range(len(calls))]
    with database.engine.connect() as connection, connection.begin():
        connection.execute(sa.text(f'LOCK TABLE "{table}" IN EXCLUSIVE MODE'))  # readers pass, writers wait
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while count_waiting(connection) < len(calls) and any(thread.is_alive() for thread in threads):
            assert time.monotonic() < deadline, found
            time.sleep(0.005)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    return found


def count_waiting(connection: sa.Connection) -> int:
    return int(connection.execute(sa.text("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")).scalar_one())


def errors_in(found: list[Any]) -> list[type[Exception]]:
    return [type(item) for item in found if isinstance(item, Exception)]


def scalar(database: Database, statement: str) -> Any:
    with database.read() as connection:
        return connection.execute(sa.text(statement)).scalar_one()


# --- keys


def test_two_servers_that_start_together_make_one_first_admin_key(database: Database) -> None:
    found = at_once(database, "keys", *[lambda: ensure_first_admin_key(database)] * 2)
    assert sorted(made is None for made in found) == [False, True]
    assert len(list_keys(database)) == 1


def test_the_last_two_admin_keys_cannot_revoke_each_other(database: Database) -> None:
    first, second = (create_key(database, scope=Scope.ADMIN, label=label).id for label in ("a", "b"))
    found = at_once(database, "keys", lambda: revoke_key(database, first), lambda: revoke_key(database, second))
    assert errors_in(found) == [ConflictError]
    assert [key.revoked_at is None for key in list_keys(database)].count(True) == 1


# --- jobs and cycles


def add_stage(database: Database, cycle_id: str = "c1", stage: Stage = Stage.CURATE) -> None:
    now = datetime.now(UTC)
    with database.transaction() as connection:
        parameters = CycleParameters(student="tiny")
        repository.insert_cycle(connection, cycle_id, parameters=parameters, trigger="manual", created_at=now)
        repository.insert_stage(connection, cycle_id, stage, state="queued", inputs={}, created_at=now)


def take(database: Database, worker_id: str) -> Lease | None:
    return jobs.lease_job(database, worker_id=worker_id, stages=WORKER_STAGES, limits=LIMITS)


def test_two_workers_never_get_the_same_job(database: Database) -> None:
    add_stage(database)
    found = at_once(database, "stages", *[lambda name=name: take(database, name) for name in ("w1", "w2", "w3")])
    assert [lease.token for lease in found if lease is not None] == [
        scalar(database, "SELECT lease_token FROM stages WHERE state = 'running'")
    ]
    assert errors_in(found) == []


def test_two_workers_get_two_jobs(database: Database) -> None:
    add_stage(database, "c1")
    add_stage(database, "c2")
    found = at_once(database, "stages", lambda: take(database, "w1"), lambda: take(database, "w2"))
    assert {lease.job.cycle_id for lease in found} == {"c1", "c2"}


def test_a_result_and_the_end_of_its_lease_do_not_undo_each_other(database: Database) -> None:
    add_stage(database)
    lease = take(database, "slow")
    assert lease is not None
    with database.transaction() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        repository.update_stage(connection, lease.job.id, leased_until=past)
    done = JobDone(token=lease.token, result=result_of(Stage.CURATE), spent=Spent())
    finished, other = at_once(
        database, "stages", lambda: jobs.finish(database, lease.job.id, done), lambda: take(database, "w2")
    )
    state = scalar(database, "SELECT state FROM stages")
    if isinstance(finished, ConflictError):  # the other worker came first, and has it
        assert (state, other.job.id) == ("running", lease.job.id)
    else:
        assert (state, other) == ("done", None)


@pytest.fixture
def service(database: Database, tmp_path: Path) -> CycleService:
    """A service whose engine is never launched: cycles are written down only."""
    settings = Settings(home=tmp_path)
    return CycleService(database, ArtifactStore(settings.artifacts_root, database), settings)


def record(number: int, **values: Any) -> JudgedInteraction:
    fields: dict[str, Any] = {
        "id": f"i{number}",
        "device_id": f"user{number % 5}",
        "timestamp": datetime.now(UTC),
        "messages": [Message(role="user", content=f"question {number}")],
        "response": "no",
        "correction": "yes",
        "consent": True,
    }
    return JudgedInteraction(**{**fields, **values})


def test_two_requests_start_one_cycle(database: Database, service: CycleService) -> None:
    store_batch(database, [record(number) for number in range(30)], source="import")
    wanted = service.defaults()
    found = at_once(database, "cycles", *[lambda: service.request_cycle(wanted, trigger="manual")] * 2)
    assert errors_in(found) == [ConflictError]
    assert len(service.recent(limit=5)) == 1


def test_two_retries_are_one(database: Database, service: CycleService) -> None:
    add_stage(database)
    service.cancel("c1")
    found = at_once(database, "cycles", *[lambda: service.retry("c1")] * 2)
    assert errors_in(found) == [ConflictError]
    assert scalar(database, "SELECT attempt FROM cycles") == 2


def test_a_cycle_is_cancelled_or_released_and_never_both(database: Database, service: CycleService) -> None:
    add_stage(database)
    with database.transaction() as connection:
        for stage in WORKER_STAGES:
            now = datetime.now(UTC)
            repository.insert_stage(connection, "c1", stage, state="done", inputs={}, created_at=now)
            job_id = repository.stage_id("c1", stage)
            repository.update_stage(connection, job_id, state="done", result=result_of(stage), finished_at=now)
    cancelled, released = at_once(
        database,
        "cycles",
        lambda: service.cancel("c1"),
        lambda: conclude(database, service.artifacts, "c1", attempt=1, margin=0.01),
    )
    state, releases = service.cycle("c1").state, scalar(database, "SELECT count(*) FROM releases")
    if isinstance(released, StageFailedError):
        assert (state, releases) == ("cancelled", 0)
    else:
        assert (state, releases) == ("released", 1)
        assert isinstance(cancelled, ConflictError)
        assert "is released already" in str(cancelled)


# --- releases and devices


def publish(database: Database, cycle_id: str) -> str:
    with database.transaction() as connection:
        return publish_release(
            connection, role="ultralight", student="tiny", base=BASE, adapter=None, quantization="Q4_K_M",
            cycle_id=cycle_id, dataset="c" * 64, evaluation="d" * 64, reason="better",
        ).version  # fmt: skip


def test_releases_at_the_same_moment_are_numbered_one_after_the_other(database: Database) -> None:
    found = at_once(database, "releases", lambda: publish(database, "c1"), lambda: publish(database, "c2"))
    assert sorted(found) == ["v1.0", "v1.1"]


def test_one_cycle_that_is_published_twice_at_once_has_one_release(database: Database) -> None:
    assert at_once(database, "releases", *[lambda: publish(database, "c1")] * 2) == ["v1.0", "v1.0"]


def test_two_that_set_the_base_of_a_role_do_not_fail(database: Database) -> None:
    def put() -> None:
        with database.transaction() as connection:
            set_base(connection, role="ultralight", student="tiny", base=BASE, quantization="Q4_K_M")

    assert at_once(database, "bases", put, put) == [None, None]
    assert scalar(database, "SELECT count(*) FROM bases") == 1


def device_key(database: Database) -> Principal:
    made = create_key(database, scope=Scope.DEVICE, label="a phone")
    return Principal(key_id=made.id, scope=Scope.DEVICE, label=made.label)


def enrol(database: Database, principal: Principal, device_id: str) -> Device:
    return enrol_device(database, principal, DeviceEnrolment(device_id=device_id, name="phone", client_version="0.1.0"))


def test_a_key_stands_for_one_device_also_when_two_enrol_with_it_at_once(database: Database) -> None:
    key = device_key(database)
    found = at_once(database, "devices", lambda: enrol(database, key, "dev-1"), lambda: enrol(database, key, "dev-2"))
    assert errors_in(found) == [ForbiddenError]
    assert len(list_devices(database)) == 1


def test_a_device_that_enrols_twice_at_once_is_there_once(database: Database) -> None:
    key = device_key(database)
    assert errors_in(at_once(database, "devices", *[lambda: enrol(database, key, "dev-1")] * 2)) == []
    assert len(list_devices(database)) == 1


# --- feedback


def test_a_key_that_sends_for_two_devices_at_once_is_refused_one(database: Database) -> None:
    key = device_key(database)

    def send(device_id: str) -> Any:
        item = {"id": f"of-{device_id}", "messages": [{"role": "user", "content": "q"}], "response": "a"}
        batch = TrainingFeedback(device_id=device_id, interactions=[item], timestamp=datetime.now(UTC))
        return accept_training_feedback(database, key, batch)

    found = at_once(database, "interactions", lambda: send("dev-1"), lambda: send("dev-2"))
    assert errors_in(found) == [ForbiddenError]
    assert scalar(database, "SELECT count(*) FROM interactions") == 1


def test_batches_with_the_same_records_in_other_orders_store_each_once(database: Database) -> None:
    records = [record(number) for number in range(200)]
    found = at_once(
        database,
        "interactions",
        lambda: store_batch(database, records, source="import"),
        lambda: store_batch(database, records[::-1], source="import"),
    )
    assert sorted(found) == [(0, 200, [], []), (200, 0, [], [])]
    assert scalar(database, "SELECT count(*) FROM feedback") == 200


def test_a_record_that_came_second_brings_no_judgement(database: Database) -> None:
    found = at_once(
        database,
        "interactions",
        lambda: store_batch(database, [record(1, device_id="ann", correction="hers")], source="device"),
        lambda: store_batch(database, [record(1, device_id="bob", correction="his")], source="device"),
    )
    assert sorted(found) == [(0, 0, ["i1"], []), (1, 0, [], [])]
    owner = scalar(database, 'SELECT "user" FROM interactions')
    sealed = scalar(database, "SELECT correction FROM feedback")
    assert (owner, database.seal.open(sealed).decode()) in {("ann", "hers"), ("bob", "his")}


def test_two_keys_that_send_for_one_new_device_at_once_share_no_id(database: Database) -> None:
    keys = device_key(database), device_key(database)

    def send(key: Principal) -> Any:
        item = {"id": f"of-{key.user}", "messages": [{"role": "user", "content": "q"}], "response": "a"}
        batch = TrainingFeedback(device_id="dev-1", interactions=[item], timestamp=datetime.now(UTC))
        return accept_training_feedback(database, key, batch)

    found = at_once(database, "interactions", *[lambda key=key: send(key) for key in keys])
    assert errors_in(found) == [ForbiddenError]
    assert scalar(database, "SELECT count(*) FROM interactions") == 1


def test_a_record_that_is_erased_while_it_comes_again_stays_erased(database: Database) -> None:
    store_batch(database, [record(1)], source="import")
    again: list[Any] = []
    thread = threading.Thread(target=lambda: again.append(store_batch(database, [record(1)], source="import")))
    with database.transaction() as connection:
        take_turns(connection, "erasures")
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while count_waiting(connection) < 1 and thread.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        delete_interactions(connection, ["i1"], now=datetime.now(UTC))
    thread.join(PATIENCE_SECONDS)
    assert again == [(0, 0, [], ["i1"])]
    assert scalar(database, "SELECT count(*) FROM interactions") == 0


def test_an_erasure_waits_for_the_records_that_are_being_stored(database: Database) -> None:
    submission = Submission([Incoming(record(1), "ann", datetime.now(UTC))], source="import")
    erased = threading.Event()

    def erase() -> None:
        with database.transaction() as connection:
            take_turns(connection, "erasures")
            delete_interactions(connection, ["i1"], now=datetime.now(UTC))
        erased.set()

    thread = threading.Thread(target=erase)
    with database.engine.connect() as connection, connection.begin():
        store_together(connection, [(submission, draft(submission, database.seal))], claims=Claims())
        thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while count_waiting(connection) < 1:
            assert time.monotonic() < deadline and not erased.is_set()
            time.sleep(0.005)
    thread.join(PATIENCE_SECONDS)
    assert scalar(database, "SELECT count(*) FROM interactions") == 0


def test_an_error_of_two_at_once_is_one_of_ours(database: Database) -> None:
    """Two transactions that wait for each other: Postgres ends one, and its sender hears that it may try again."""
    with database.transaction() as connection:
        connection.execute(sa.text("CREATE TABLE spots (id INTEGER PRIMARY KEY)"))
    first_done = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def insert(*ids: int) -> None:
        with database.transaction() as connection:
            connection.execute(sa.text("INSERT INTO spots VALUES (:id)"), {"id": ids[0]})
            first_done.wait()
            connection.execute(sa.text("INSERT INTO spots VALUES (:id) ON CONFLICT DO NOTHING"), {"id": ids[1]})

    found = at_once(database, "keys", lambda: insert(1, 2), lambda: insert(2, 1))
    refused = [item for item in found if isinstance(item, EverswarmError)]
    assert len(refused) == 1
    assert "Send it again" in str(refused[0])
