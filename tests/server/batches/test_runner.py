"""The runner beside a clock that the test moves: leases, expiry, kills, and two servers on one database."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import orjson
import pytest
from tests.server.batches.serving import json_lines, request_line

from everswarm.errors import NoSpaceError, UnavailableError
from everswarm.server.batches import files, run, runner, service
from everswarm.server.batches.objects import KEPT_SECONDS, BatchCreate, batch_object
from everswarm.server.batches.runner import LEASE_SECONDS, BatchRunner
from everswarm.server.database import Database, metadata
from everswarm.server.migrations.tables import load_all_tables


class Answers:
    """Answers in place of the swarm; holds each back while `held` is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.users: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.in_flight = 0
        self.most_in_flight = 0
        self.refusals: list[Exception] = []

    async def answer_batched(self, request, *, user):
        self.asked[request.messages[0].content.removeprefix("question ")] += 1
        self.users.add(user)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            await self.open.wait()
            if self.refusals:
                raise self.refusals.pop()
            return {"choices": [], "id": "chatcmpl-1"}
        finally:
            self.in_flight -= 1


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    """An empty database of either kind, with the tables of every room."""
    load_all_tables()
    sqlite_url = f"sqlite:///{tmp_path / 'everswarm.sqlite'}"
    opened = Database(request.getfixturevalue("postgres_url") if request.param == "postgres" else sqlite_url)
    with opened.transaction() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def clock():
    now = SimpleNamespace(value=datetime(2026, 1, 1, tzinfo=UTC))
    return SimpleNamespace(now=lambda: now.value, pass_=lambda s: setattr(now, "value", now.value + timedelta(0, s)))


@pytest.fixture
async def running(database, clock, answers):
    """Return a function that starts one more runner on the one database."""
    started = []

    async def start(**options) -> BatchRunner:
        options = {"beat_seconds": 0.02, "grace_seconds": 0.05, **options}
        started.append(BatchRunner(database, answers, clock=clock.now, **options))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        await each.stop()


def begin(database, clock, *custom_ids, owner="ann"):
    content = json_lines(*[request_line(custom_id) for custom_id in custom_ids])
    given = files.upload_file(
        database, [content], owner=owner, filename="f", now=clock.now(), kept_seconds=KEPT_SECONDS
    )
    wanted = BatchCreate(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h")
    return service.create_batch(database, wanted, owner=owner, now=clock.now())


def lines_of(database, file_id):
    row = files.get_file(database, file_id, owner="ann")
    return [orjson.loads(line) for line in b"".join(files.read_file(database, row)).splitlines()]


async def wait_for(condition):
    async with asyncio.timeout(30):
        while not (found := condition()):
            await asyncio.sleep(0.01)
    return found


async def ended(database, batch):
    def look():
        row = service.get_batch(database, batch.id, owner=None)
        return row if row.status in ("completed", "failed", "expired", "cancelled") else None

    return await wait_for(look)


def names(count, start="r"):
    return [f"{start}{number}" for number in range(count)]


async def kill(one):
    """End a runner as `kill -9` would: what is in flight is lost, and nothing is given back."""
    for task in (one._task, *one._runs.values()):
        task.cancel()
    one._runs.clear()
    one._task = None


async def test_two_servers_on_one_database_do_each_request_once(database, clock, answers, running):
    batches = [begin(database, clock, *names(10, f"b{number}-")) for number in range(6)]
    await asyncio.gather(running(), running())
    for batch in batches:
        row = await ended(database, batch)
        assert (row.status, row.completed, row.total) == ("completed", 10, 10)
    assert set(answers.asked.values()) == {1}
    assert len(answers.asked) == 60
    assert answers.users == {"ann"}


async def test_no_more_requests_than_allowed_are_in_flight(database, clock, answers, running):
    answers.open.clear()
    batch = begin(database, clock, *names(30))
    await running(concurrency=5)
    await wait_for(lambda: answers.in_flight == 5)
    answers.open.set()
    assert (await ended(database, batch)).completed == 30
    assert answers.most_in_flight == 5


async def test_batch_that_waits_stops_no_other(database, clock, answers, running):
    answers.open.clear()
    begin(database, clock, *names(30, "slow"))
    one = await running(concurrency=4)
    await wait_for(lambda: answers.in_flight == 4)
    begin(database, clock, *names(30, "late"))
    one.wake()
    await wait_for(lambda: answers.asked["late0"] == 1)


async def test_killed_servers_batch_goes_on_when_its_lease_is_over(database, clock, answers, running):
    batch = begin(database, clock, *names(30))
    answers.open.clear()
    first = await running(concurrency=3)
    await wait_for(lambda: answers.in_flight == 3)
    await kill(first)
    answers.open.set()
    await running()
    await asyncio.sleep(0.1)
    assert len(answers.asked) == 3, "the lease of the dead still holds"
    clock.pass_(LEASE_SECONDS + 1)
    row = await ended(database, batch)
    assert (row.status, row.completed) == ("completed", 30)
    assert sorted(answers.asked.values()) == [1] * 27 + [2] * 3, "only what was in flight ran again"


async def test_server_that_stalled_past_its_lease_stores_nothing_any_more(database, clock, answers, running):
    batch = begin(database, clock, "a", "b")
    answers.open.clear()
    stalled = await running(beat_seconds=3600)
    await wait_for(lambda: answers.in_flight == 2)
    clock.pass_(LEASE_SECONDS + 1)
    await running()
    await wait_for(lambda: answers.in_flight == 4)
    answers.open.set()
    row = await ended(database, batch)
    assert (row.completed, row.failed, row.total) == (2, 0, 2)
    assert len(lines_of(database, row.output_file_id)) == 2
    await wait_for(lambda: not stalled._runs)


async def test_batch_ends_after_its_window_with_what_is_done(database, clock, answers, running):
    batch = begin(database, clock, *names(20))
    answers.refusals = [UnavailableError("down", retry_after_seconds=3000) for _ in range(4)]
    await running(concurrency=4)
    await wait_for(lambda: len(answers.asked) == 4)
    row = service.get_batch(database, batch.id, owner="ann")
    assert row.status == "in_progress"
    clock.pass_(service.WINDOW_SECONDS)
    row = await ended(database, batch)
    assert (row.status, row.completed, row.failed) == ("expired", 0, 20)
    assert row.expired_at == clock.now()
    assert row.output_file_id is None
    assert lines_of(database, row.error_file_id)[0] == {
        "id": f"batch_req_{batch.id.removeprefix('batch_')}_1",
        "custom_id": "r0",
        "response": None,
        "error": {
            "code": "batch_expired",
            "message": "This request could not be executed before the completion window expired.",
        },
    }


async def test_call_that_hangs_is_ended_when_the_window_is_over(database, clock, answers, running):
    batch = begin(database, clock, *names(12))
    await running(concurrency=4)
    await wait_for(lambda: len(answers.asked) >= 4)
    answers.open.clear()
    clock.pass_(service.WINDOW_SECONDS)
    row = await ended(database, batch)
    assert row.status in ("expired", "completed")
    assert row.completed + row.failed == 12
    assert answers.in_flight == 0


async def test_request_goes_back_while_the_endpoint_is_away(database, clock, answers, running):
    answers.refusals = [UnavailableError("'up' is starting", retry_after_seconds=1)]
    batch = begin(database, clock, "a")
    await running()
    row = await wait_for(lambda: _noted(database, batch))
    told = batch_object(row, now=clock.now())["everswarm"]
    assert told == {"eta_seconds": None, "waiting_for": "'up' is starting"}
    assert (await ended(database, batch)).completed == 1
    assert answers.asked["a"] == 2


def _noted(database, batch):
    row = service.get_batch(database, batch.id, owner=None)
    return row if row.waiting_for else None


async def test_surprise_is_the_requests_error_and_shows_nothing_of_the_inside(database, clock, answers, running):
    answers.refusals = [RuntimeError("/secret/place")]
    batch = begin(database, clock, "a")
    await running()
    row = await ended(database, batch)
    (line,) = lines_of(database, row.error_file_id)
    assert line["response"]["status_code"] == 500
    assert "secret" not in str(line)


async def test_answer_is_kept_until_the_database_takes_it(database, clock, answers, running, monkeypatch):
    monkeypatch.setattr(run, "STORE_AGAIN_SECONDS", 0.01)
    store, failures = run.repository.finish_item, [NoSpaceError("full"), NoSpaceError("full")]

    def fail_first(*args, **options):
        if failures:
            raise failures.pop()
        store(*args, **options)

    monkeypatch.setattr(run.repository, "finish_item", fail_first)
    batch = begin(database, clock, "a")
    await running()
    assert (await ended(database, batch)).completed == 1
    assert answers.asked["a"] == 1


async def test_batch_whose_input_was_deleted_fails_and_says_so(database, clock, running):
    batch = begin(database, clock, "a")
    files.delete_file(database, batch.input_file_id, owner="ann")
    await running()
    row = await ended(database, batch)
    assert row.status == "failed"
    assert [(error["code"], error["param"]) for error in row.errors] == [("input_file_deleted", "input_file_id")]
    assert "Upload it again" in row.errors[0]["message"]


async def test_input_may_be_deleted_once_it_was_read(database, clock, answers, running):
    answers.open.clear()
    batch = begin(database, clock, *names(20))
    await running()
    await wait_for(lambda: answers.in_flight)
    files.delete_file(database, batch.input_file_id, owner="ann")
    answers.open.set()
    assert (await ended(database, batch)).completed == 20


async def test_batch_cancelled_before_its_input_was_read_makes_no_files(database, clock, answers, running):
    batch = begin(database, clock, "a")
    service.cancel_batch(database, batch.id, owner="ann", now=clock.now())
    await running()
    row = await ended(database, batch)
    assert (row.status, row.output_file_id, row.error_file_id) == ("cancelled", None, None)
    assert not answers.asked


async def test_batch_that_was_cut_off_while_its_files_were_written_ends_once(database, clock, running, monkeypatch):
    batch = begin(database, clock, *names(5))
    show, cut = runner.repository.show_file, [True]

    def cut_off(connection, file_id, **options):
        if cut and file_id != batch.input_file_id:
            cut.clear()
            raise RuntimeError("cut off")
        show(connection, file_id, **options)

    monkeypatch.setattr(runner.repository, "show_file", cut_off)
    await running()
    await wait_for(lambda: not cut)
    assert service.get_batch(database, batch.id, owner=None).status == "finalizing"
    clock.pass_(LEASE_SECONDS + 1)
    row = await ended(database, batch)
    assert (row.status, row.completed, row.failed) == ("completed", 5, 0)
    listed, _ = files.list_files(database, owner="ann", purpose="batch_output", after=None, limit=10, oldest_first=True)
    assert [file.id for file in listed] == [row.output_file_id]


async def test_old_files_go_while_the_server_runs(database, clock, running):
    given = files.upload_file(database, [b"x"], owner="a", filename="f", now=clock.now(), kept_seconds=KEPT_SECONDS)
    clock.pass_(KEPT_SECONDS)
    await running()
    page = {"owner": "a", "purpose": None, "after": None, "limit": 1, "oldest_first": True}
    await wait_for(lambda: not files.list_files(database, **page)[0])
    assert given.expires_at == clock.now()


async def test_stopped_runner_gives_its_batches_back_at_once(database, clock, answers, running):
    batch = begin(database, clock, *names(20))
    answers.open.clear()
    one = await running()
    await wait_for(lambda: answers.in_flight)
    await one.stop()
    assert answers.in_flight == 0
    assert service.get_batch(database, batch.id, owner=None).lease_token is None
    answers.open.set()
    await running()
    assert (await ended(database, batch)).completed == 20
