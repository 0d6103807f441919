"""What is too old goes by itself."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from tests.server.erasure.world import NOW, World

from everswarm.identifiers import new_id
from everswarm.schemas.artifact import ArtifactKind
from everswarm.server.cycles.repository import results_of
from everswarm.server.database import Database
from everswarm.server.erasure import Retention, expire, retention
from everswarm.server.erasure.repository import mark_erased
from everswarm.server.feedback.tables import erased, feedback, interactions
from everswarm.server.threads.tables import threads
from everswarm.settings import Settings

DAY = timedelta(days=1)


def begun(world: World, *, updated_at: datetime) -> str:
    thread_id = new_id()
    world.insert(threads, id=thread_id, user="anna", created_at=NOW, updated_at=updated_at)
    return thread_id


def left(world: World) -> list[str]:
    with world.database.read() as connection:
        return sorted(connection.execute(select(interactions.c.id)).scalars())


def test_what_is_older_goes_with_its_judgements(database: Database, world: World) -> None:
    world.asks("anna", "old", created_at=NOW - 31 * DAY)
    world.asks("anna", "new", created_at=NOW - 29 * DAY)
    assert expire(database, NOW, 30) == 1
    assert left(world) == ["new"]
    assert world.count(feedback) == 1
    assert world.count(erased) == 1
    assert expire(database, NOW, 30) == 0


def test_results_of_evaluations_no_longer_quote_what_was_too_old(database: Database, world: World) -> None:
    world.asks("anna", "old", created_at=NOW - 40 * DAY)
    world.asks("bert", "won")
    world.judges("bert", "won", preferred_over="old")  # frozen with the answer that lost
    world.asks("bert", "new")
    world.runs_cycle("c1", {"old": "anna", "won": "bert", "new": "bert"})
    assert expire(database, NOW, 30) == 1
    with database.read() as connection:
        assert [answer["id"] for answer in results_of(connection, "c1")["evaluate"]["answers"]] == ["new"]


def test_without_a_limit_only_what_was_asked_for_goes(database: Database, world: World) -> None:
    world.asks("anna", "ancient", created_at=NOW - 9999 * DAY)
    world.asks("anna", "wished", expires_at=NOW - timedelta(seconds=1))
    world.asks("anna", "later", expires_at=NOW + timedelta(seconds=1))
    assert expire(database, NOW, 0) == 1
    assert left(world) == ["ancient", "later"]


def test_a_conversation_that_goes_on_is_kept_whole(database: Database, world: World) -> None:
    goes_on, ended = begun(world, updated_at=NOW - DAY), begun(world, updated_at=NOW - 40 * DAY)
    world.asks("anna", "early", thread_id=goes_on, created_at=NOW - 50 * DAY)
    world.asks("anna", "late", thread_id=goes_on, created_at=NOW - DAY)
    world.asks("anna", "over", thread_id=ended, created_at=NOW - 40 * DAY)
    assert expire(database, NOW, 30) == 1
    assert left(world) == ["early", "late"]
    assert world.count(threads) == 1


def test_a_wish_ends_the_whole_conversation(database: Database, world: World) -> None:
    thread_id = begun(world, updated_at=NOW)
    world.asks("anna", "early", thread_id=thread_id, expires_at=NOW)
    world.asks("anna", "late", thread_id=thread_id)  # repeats what was said early
    assert expire(database, NOW, 0) == 2
    assert world.count(threads) == 0


def test_they_go_in_several_transactions_and_stop_when_told(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "INTERACTIONS_A_TRANSACTION", 3)
    for number in range(10):
        world.asks("anna", f"old-{number}", created_at=NOW - (40 + number) * DAY)
    rounds = iter([True, True, False])
    assert expire(database, NOW, 30, goes_on=lambda: next(rounds)) == 6
    assert left(world) == ["old-0", "old-1", "old-2", "old-3"]  # the oldest went first
    assert expire(database, NOW, 30) == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(-5, 5)), max_size=12),
    keep_days=st.integers(0, 60),
)
def test_exactly_what_is_due_goes(
    database: Database, world: World, asked: list[tuple[int, int | None]], keep_days: int
) -> None:
    with database.transaction() as connection:
        for table in (feedback, interactions):
            connection.execute(table.delete())
    due = set()
    for age_days, wished in asked:
        expires_at = None if wished is None else NOW + wished * DAY
        name = world.asks("anna", new_id(), created_at=NOW - age_days * DAY, expires_at=expires_at)
        if (wished is not None and wished <= 0) or (keep_days and age_days > keep_days):
            due.add(name)
    before = set(left(world))
    assert expire(database, NOW, keep_days) == len(due)
    assert set(left(world)) == before - due


def _patiently(is_so: Any) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("nothing happened")


def test_it_runs_by_itself_and_finishes_what_an_erasure_left(database: Database, world: World, tmp_path: Any) -> None:
    kept = world.keeps(b"texts", ArtifactKind.DATASET, "dataset.parquet")
    with database.transaction() as connection:
        mark_erased(connection, [kept["sha256"]])
    world.asks("anna", "wished", expires_at=datetime.now(UTC) - DAY)
    settings_of_it = Settings(home=tmp_path)  # its artifacts lie where those of the world do
    running = Retention(database, settings_of_it, first_seconds=0.0, pause_seconds=0.01)
    running.start()
    _patiently(lambda: not world.has_file(kept))
    running.stop()
    assert left(world) == []


def test_it_stops_at_once_where_it_has_not_begun(database: Database, tmp_path: Any) -> None:
    running = Retention(database, Settings(home=tmp_path))
    running.start()
    running.stop()
    Retention(database, Settings(home=tmp_path)).stop()
