"""Reserve, settle, cancel over real stores: the same for SQLite and Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
from pathlib import Path

import pytest

from everswarm.errors import NoSpaceError, UnavailableError
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway import quota_postgres, quota_sqlite
from everswarm.server.gateway.quota import Limit, Quota, Refusal, Reservation
from everswarm.server.gateway.quota_store import LEASE_SECONDS, open_quota_store
from everswarm.server.gateway.rate_headers import Correction

PEOPLE, BATCH = Priority.INTERACTIVE, Priority.BATCH


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("postgres_url") if request.param == "postgres" else None


@pytest.fixture
async def open_store(tmp_path: Path, url: str | None, clock: Clock):
    """Open one more owner of the same quotas."""
    opened = []

    def open_one():
        opened.append(open_quota_store(home=tmp_path, database_url=url, clock=clock))
        return opened[-1]

    yield open_one
    for store in opened:
        with contextlib.suppress(Exception):
            await store.close()


@pytest.fixture
async def file_store(tmp_path: Path, clock: Clock):
    store = open_quota_store(home=tmp_path, database_url=None, clock=clock)
    yield store
    with contextlib.suppress(Exception):
        await store.close()


def quota(*limits: Limit, **more) -> Quota:
    return Quota(uuid.uuid4().hex, limits or (Limit("tokens", 100, 60.0),), **more)


async def granted(store, wanted: Quota, tokens: int, *, priority: Priority = PEOPLE) -> Reservation:
    decision = await store.reserve(wanted, tokens, priority=priority)
    assert isinstance(decision, Reservation), decision
    return decision


async def refused(store, wanted: Quota, tokens: int, *, priority: Priority = PEOPLE) -> Refusal:
    decision = await store.reserve(wanted, tokens, priority=priority)
    assert isinstance(decision, Refusal), decision
    return decision


async def numbers(store, wanted: Quota) -> list[tuple[int, int, int]]:
    return [(limit.used, limit.held, limit.left) for limit in (await store.view(wanted)).limits]


async def test_reserved_is_held_settled_is_used_and_the_rest_comes_back(open_store):
    store, wanted = open_store(), quota(Limit("tokens", 100, 60.0), Limit("requests", 3, 60.0))
    reservation = await granted(store, wanted, 70)
    assert (reservation.key, reservation.tokens) == (wanted.key, 70)
    assert await numbers(store, wanted) == [(0, 70, 30), (0, 1, 2)]
    await refused(store, wanted, 31)
    await store.settle(wanted, reservation, 20)
    assert await numbers(store, wanted) == [(20, 0, 80), (1, 0, 2)]
    await store.cancel(await granted(store, wanted, 80))
    assert await numbers(store, wanted) == [(20, 0, 80), (1, 0, 2)]


async def test_second_settle_or_cancel_does_nothing(open_store):
    store, wanted = open_store(), quota()
    first, second = await granted(store, wanted, 10), await granted(store, wanted, 10)
    for _ in range(2):
        await store.settle(wanted, first, 10)
        await store.cancel(second)
    await store.cancel(first)
    await store.settle(wanted, second, 10)
    assert await numbers(store, wanted) == [(10, 0, 90)]


async def test_two_owners_share_one_quota(open_store):
    one, other, wanted = open_store(), open_store(), quota()
    reservation = await granted(one, wanted, 60)
    refusal = await refused(other, wanted, 41)
    assert refusal.retry_after_seconds > 0
    await granted(other, wanted, 40)
    await one.settle(wanted, reservation, 10)
    assert await numbers(other, wanted) == [(10, 40, 50)]


async def test_many_at_once_get_exactly_the_limit(open_store):
    stores, wanted = [open_store(), open_store()], quota(Limit("tokens", 70, 60.0))
    decisions = await asyncio.gather(*(stores[n % 2].reserve(wanted, 1, priority=PEOPLE) for n in range(100)))
    assert sum(isinstance(decision, Reservation) for decision in decisions) == 70
    assert len({decision.id for decision in decisions if isinstance(decision, Reservation)}) == 70


async def test_used_tokens_come_back_after_their_window(open_store, clock):
    store, wanted = open_store(), quota()
    await store.settle(wanted, await granted(store, wanted, 100), 100)
    refusal = await refused(store, wanted, 1)
    clock.now += refusal.retry_after_seconds
    await granted(store, wanted, 100)


async def test_batches_leave_the_share_of_interactive_use(open_store):
    store, wanted = open_store(), quota(interactive_share=0.5)
    await granted(store, wanted, 50, priority=BATCH)
    await refused(store, wanted, 1, priority=BATCH)
    await granted(store, wanted, 50, priority=PEOPLE)


async def test_silent_owner_loses_its_holds_and_settling_later_still_counts(open_store, clock):
    silent, other, wanted = open_store(), open_store(), quota()
    reservation = await granted(silent, wanted, 80)
    clock.now += LEASE_SECONDS / 2
    await refused(other, wanted, 21)
    clock.now += LEASE_SECONDS / 2
    await other.cancel(await granted(other, wanted, 100))
    await silent.settle(wanted, reservation, 30)
    assert await numbers(other, wanted) == [(30, 0, 70)]


async def test_beat_keeps_the_holds_and_brings_back_those_that_were_lost(open_store, clock):
    store, other, wanted = open_store(), open_store(), quota()
    await granted(store, wanted, 80)
    for _ in range(5):
        clock.now += LEASE_SECONDS * 0.9
        await store.beat()
    await refused(other, wanted, 21)
    clock.now += LEASE_SECONDS * 2
    await other.cancel(await granted(other, wanted, 21))
    await store.beat()
    await refused(other, wanted, 21)


async def test_closing_gives_back_what_is_held(open_store):
    store, other, wanted = open_store(), open_store(), quota()
    await granted(store, wanted, 80)
    await store.close()
    await granted(other, wanted, 100)


async def test_closure_is_shared_and_ends(open_store, clock):
    one, other, wanted = open_store(), open_store(), quota()
    await one.close_key(wanted.key, seconds=120, reason="402: the credit is used up.")
    await one.close_key(wanted.key, seconds=5, reason="429")
    refusal = await refused(other, wanted, 1)
    assert (refusal.closed, refusal.retry_after_seconds, refusal.reason) == (True, 120, "402: the credit is used up.")
    assert await other.eta_seconds(wanted, 1, priority=PEOPLE) == 120
    state = await other.view(wanted)
    assert state.closed_until is not None and state.closed_until.timestamp() == clock.now + 120
    clock.now += 120
    await granted(other, wanted, 1)


async def test_word_of_the_endpoint_is_shared_and_survives_a_restart(open_store):
    store = open_store()
    wanted = quota(Limit("tokens", 100, 60.0, source="the dated table"))
    await store.correct(wanted, [Correction("tokens", 30, 20.0, limit=50, window_seconds=60.0)])
    await store.close()
    later = open_store()
    (limit,) = (await later.view(wanted)).limits
    assert (limit.amount, limit.left, limit.source) == (50, 30, "the endpoint's headers")
    await refused(later, wanted, 31)


async def test_use_survives_a_restart(open_store):
    store, wanted = open_store(), quota()
    await store.settle(wanted, await granted(store, wanted, 90), 90)
    await store.close()
    await refused(open_store(), wanted, 11)


async def test_eta_counts_the_line_ahead(open_store):
    store, wanted = open_store(), quota()
    assert await store.eta_seconds(wanted, 100, priority=PEOPLE) == 0
    await store.settle(wanted, await granted(store, wanted, 100), 100)
    one_window = await store.eta_seconds(wanted, 100, priority=PEOPLE)
    assert 60 <= one_window <= 61
    assert await store.eta_seconds(wanted, 250, priority=PEOPLE) == one_window + 2 * 61


async def test_request_that_never_fits_reserves_nothing(open_store):
    store, wanted = open_store(), quota()
    assert (await refused(store, wanted, 101)).never
    assert await numbers(store, wanted) == [(0, 0, 100)]


async def test_cancelled_reserving_holds_nothing(open_store):
    store, other, wanted = open_store(), open_store(), quota()
    await granted(store, wanted, 1)
    for pause in (0.0, 0.001):
        task = asyncio.create_task(store.reserve(wanted, 90, priority=PEOPLE))
        await asyncio.sleep(pause)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await store.cancel(await task)
    await store.beat()
    await granted(other, wanted, 99)


async def test_cancelled_settling_is_still_done(open_store):
    store, wanted = open_store(), quota()
    reservation = await granted(store, wanted, 90)
    task = asyncio.create_task(store.settle(wanted, reservation, 40))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await store.beat()
    assert await numbers(store, wanted) == [(40, 0, 60)]


async def test_file_is_for_its_owner_only(file_store, tmp_path):
    await granted(file_store, quota(), 1)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("gateway.*")} == {0o600}
    assert (tmp_path / "gateway.sqlite").exists()


async def test_busy_file_refuses_after_a_while_and_never_blocks_the_loop(file_store, tmp_path, monkeypatch):
    monkeypatch.setattr(quota_sqlite, "BUSY_SECONDS", 0.1)
    wanted, turns = quota(), 0
    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.sqlite", isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(file_store.reserve(wanted, 1, priority=PEOPLE))
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(UnavailableError, match="busy"):
            await task
        assert turns > 10
        assert await numbers(file_store, wanted) == [(0, 0, 100)]  # reading goes on
        another.execute("ROLLBACK")
    await granted(file_store, wanted, 100)


async def test_settling_in_a_busy_file_is_done_later(file_store, tmp_path, monkeypatch):
    monkeypatch.setattr(quota_sqlite, "BUSY_SECONDS", 0.0)
    wanted = quota()
    settled, cancelled = await granted(file_store, wanted, 50), await granted(file_store, wanted, 50)
    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.sqlite", isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        await file_store.settle(wanted, settled, 10)
        await file_store.cancel(cancelled)
        assert await numbers(file_store, wanted) == [(0, 100, 0)]
        another.execute("ROLLBACK")
    await file_store.beat()
    assert await numbers(file_store, wanted) == [(10, 0, 90)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"this is no database at all" * 400,
        lambda whole: whole[:4096] + bytes(len(whole) - 4096),
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:4096] + bytes(byte ^ 0xA5 for byte in whole[4096:]),
    ],
    ids=["garbage", "zeros", "cut", "flipped"],
)
async def test_damaged_file_is_moved_aside_and_begun_anew(tmp_path, damage, caplog):
    wanted = quota()
    store = open_quota_store(home=tmp_path, database_url=None)
    await store.settle(wanted, await granted(store, wanted, 90), 90)
    await store.close()
    path = tmp_path / "gateway.sqlite"
    path.write_bytes(damage(path.read_bytes()))
    store = open_quota_store(home=tmp_path, database_url=None)
    assert "is damaged" in caplog.text
    assert (tmp_path / "gateway.sqlite.damaged").exists()
    await granted(store, wanted, 100)
    await store.close()


async def test_file_that_others_use_is_not_moved_aside(file_store, tmp_path):
    await granted(file_store, quota(), 1)
    path = tmp_path / "gateway.sqlite"
    path.write_bytes(b"garbage" * 2000)
    with contextlib.suppress(UnavailableError):
        await open_quota_store(home=tmp_path, database_url=None).close()
    assert not (tmp_path / "gateway.sqlite.damaged").exists()


async def test_file_damaged_while_it_is_open_grants_nothing(file_store, tmp_path):
    wanted = quota()
    await granted(file_store, wanted, 1)
    await file_store.beat()
    connection = file_store._ledgers._connection
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA cache_size=0")
    connection.execute("PRAGMA shrink_memory")
    path = tmp_path / "gateway.sqlite"
    path.write_bytes(b"garbage" * 2000)
    with pytest.raises(UnavailableError, match="Start everswarm again"):
        await file_store.reserve(wanted, 1, priority=PEOPLE)


async def test_full_disk_grants_nothing(file_store):
    wanted = quota()
    reservation = await granted(file_store, wanted, 10)
    connection = file_store._ledgers._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(NoSpaceError, match="Free some space"):
        for _ in range(100):
            await file_store.reserve(quota(), 1, priority=PEOPLE)
    await file_store.settle(wanted, reservation, 5)
    connection.execute("PRAGMA max_page_count=100000")
    assert await numbers(file_store, wanted) == [(5, 0, 95)]


async def test_log_is_cut(file_store, tmp_path, monkeypatch):
    monkeypatch.setattr(quota_sqlite, "LARGEST_LOG_BYTES", 100_000)
    wanted = quota()
    for _ in range(100):
        await file_store.cancel(await granted(file_store, wanted, 1))
    log = tmp_path / "gateway.sqlite-wal"
    assert log.stat().st_size > 100_000
    await file_store.beat()
    assert log.stat().st_size == 0


async def test_quota_that_nobody_used_for_long_is_forgotten(file_store, tmp_path, clock):
    await file_store.cancel(await granted(file_store, quota(), 1))
    clock.now += quota_sqlite.FORGET_SECONDS + 1
    await file_store.beat()
    with contextlib.closing(sqlite3.connect(tmp_path / "gateway.sqlite")) as looking:
        assert looking.execute("SELECT count(*) FROM quotas").fetchone() == (0,)


@pytest.mark.postgres
async def test_postgres_clock_counts_where_none_is_given(tmp_path, postgres_url, monkeypatch):
    store, wanted = open_quota_store(home=tmp_path, database_url=postgres_url), quota()
    monkeypatch.setattr("time.time", lambda: 0.0)
    await store.close_key(wanted.key, seconds=100, reason="402")
    state = await store.view(wanted)
    assert state.closed_until is not None and state.closed_until.year > 2020
    await store.close()


@pytest.mark.postgres
async def test_postgres_that_was_started_again_is_found(tmp_path, postgres_url):
    import psycopg

    store, wanted = open_quota_store(home=tmp_path, database_url=postgres_url), quota()
    reservation = await granted(store, wanted, 10)
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as operator:
        operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await store.settle(wanted, reservation, 10)
    assert await numbers(store, wanted) == [(10, 0, 90)]
    await store.close()


@pytest.mark.postgres
async def test_postgres_that_does_not_answer_grants_nothing(tmp_path, postgres_url):
    nobody = postgres_url.rsplit("@", 1)[0] + "@127.0.0.1:1/nothing"
    store = open_quota_store(home=tmp_path, database_url=nobody)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="EVERSWARM_DATABASE_URL"):
            await store.reserve(quota(), 1, priority=PEOPLE)
    await store.beat()
    await store.close()


@pytest.mark.postgres
async def test_postgres_row_that_another_holds_refuses_after_a_while(tmp_path, postgres_url, monkeypatch):
    import psycopg

    monkeypatch.setattr(quota_postgres, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(quota_postgres, "DOWN_SECONDS", 0.0)
    store, wanted = open_quota_store(home=tmp_path, database_url=postgres_url), quota()
    await store.cancel(await granted(store, wanted, 1))
    with psycopg.connect(postgres_url.replace("+psycopg", "")) as another:
        another.execute("SELECT 1 FROM gateway_quotas WHERE key = %s FOR UPDATE", (wanted.key,))
        with pytest.raises(UnavailableError, match="lock timeout"):
            await store.reserve(wanted, 1, priority=PEOPLE)
        another.rollback()
    await granted(store, wanted, 100)
    await store.close()
