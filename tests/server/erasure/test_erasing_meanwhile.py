"""An erasure while something is frozen, kept or uploaded: whoever comes second sees the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from tests.server.erasure.world import NOW, World

from everswarm.errors import ConflictError, StageFailedError
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.dataset import FrozenInteraction, Snapshot
from everswarm.schemas.job import CycleParameters, Stage
from everswarm.server.cycles import repository, stages
from everswarm.server.database import Database, share_turn
from everswarm.server.erasure import erase, expire, service
from everswarm.server.feedback.tables import interactions
from everswarm.server.registry.tables import artifacts

PATIENCE_SECONDS = 30.0


class Blocking:
    """A cache of answers whose forgetting, just before the commit, lasts until `go_on`."""

    def __init__(self) -> None:
        self.is_reached, self.may_go_on = threading.Event(), threading.Event()

    def forget_user(self, _user: str) -> None:
        self.is_reached.set()
        assert self.may_go_on.wait(PATIENCE_SECONDS)


def begins(world: World, cycle_id: str) -> None:
    with world.database.transaction() as connection:
        parameters = CycleParameters(student="tiny")
        repository.insert_cycle(connection, cycle_id, parameters=parameters, trigger="manual", created_at=NOW)


def freeze(world: World, cycle_id: str = "c1") -> list[FrozenInteraction]:
    """Freeze for a cycle, and return what its snapshot holds."""
    stages.freeze(world.database, world.artifacts, world.storage, cycle_id, attempt=1, scrubber="builtin")
    with world.database.read() as connection:
        snapshot = Snapshot.model_validate(repository.results_of(connection, cycle_id)[Stage.SNAPSHOT])
    with world.artifacts.open(snapshot.data.sha256) as lines:
        return [FrozenInteraction.model_validate_json(line) for line in lines]


def snapshots(world: World) -> int:
    return world.count(artifacts, artifacts.c.kind == ArtifactKind.SNAPSHOT.value)


def after_reading(monkeypatch: pytest.MonkeyPatch, *calls: Callable[[], Any]) -> None:
    """Make one of `calls` each time that a snapshot was read, before it is recorded."""
    take, left = stages.take_snapshot, list(calls)

    def take_and_call(*arguments: Any, **options: Any) -> Snapshot:
        snapshot = take(*arguments, **options)
        if left:
            left.pop(0)()
        return snapshot

    monkeypatch.setattr(stages, "take_snapshot", take_and_call)


def test_who_is_erased_while_a_snapshot_is_taken_is_not_in_it(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("anna", "anna-1")
    world.asks("bert", "bert-1")
    begins(world, "c1")
    after_reading(monkeypatch, lambda: erase(database, world.storage, user="anna"))
    assert [one.id for one in freeze(world)] == ["bert-1"]
    assert snapshots(world) == 1
    assert sum(path.is_file() for path in world.folder.rglob("*")) == 1


def test_what_an_erased_person_said_of_others_is_not_in_it(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("bert", "bert-1")
    world.judges("anna", "bert-1", correction="anna knows better")
    begins(world, "c1")
    after_reading(monkeypatch, lambda: erase(database, world.storage, user="anna"))
    assert [one.correction for one in freeze(world)] == [None]


def test_what_becomes_too_old_meanwhile_is_not_in_it(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("anna", "old", created_at=NOW - timedelta(days=40))
    world.asks("anna", "new")
    begins(world, "c1")
    after_reading(monkeypatch, lambda: expire(database, NOW, 30))
    assert [one.id for one in freeze(world)] == ["new"]


def test_a_snapshot_that_is_overtaken_each_time_fails_and_is_not_left(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"user{number}" for number in range(6)]
    for name in names:
        world.asks(name, f"{name}-1")
    begins(world, "c1")
    after_reading(monkeypatch, *(lambda name=name: erase(database, world.storage, user=name) for name in names))
    with pytest.raises(StageFailedError, match=r"5 times running.* everswarm cycle retry c1"):
        freeze(world)
    assert snapshots(world) == 0
    assert world.count(interactions) == 1


def test_an_erasure_that_is_about_to_commit_is_waited_for(database: Database, world: World) -> None:
    world.asks("anna", "anna-1")
    world.asks("bert", "bert-1")
    begins(world, "c1")
    cache: Any = Blocking()
    erasing = threading.Thread(target=lambda: erase(database, world.storage, user="anna", cache=cache))
    erasing.start()
    assert cache.is_reached.wait(PATIENCE_SECONDS)
    found: list[str] = []
    freezing = threading.Thread(target=lambda: found.extend(one.id for one in freeze(world)))
    freezing.start()
    freezing.join(0.3)
    assert not found
    cache.may_go_on.set()
    erasing.join(PATIENCE_SECONDS)
    freezing.join(PATIENCE_SECONDS)
    assert found == ["bert-1"]


def test_a_cycle_that_begins_anew_leaves_no_file_that_only_it_had(database: Database, world: World) -> None:
    stale = world.runs_cycle("c1", {"anna-1": "anna"}, state="failed")
    other = world.runs_cycle("c2", {"anna-1": "anna"})
    assert stale["snapshot"] == other["snapshot"]
    with database.transaction() as connection:
        stages.begin_anew(connection, world.storage, "c1")
    assert not any(world.has_file(stale[name]) for name in ("dataset", "shard", "review"))
    assert world.has_file(stale["weights"])
    assert all(world.has_file(one) for one in other.values())
    with database.read() as connection:
        assert repository.results_of(connection, "c1") == {}
        assert repository.results_of(connection, "c2")


def while_files_are_read(monkeypatch: pytest.MonkeyPatch, *calls: Callable[[], Any]) -> None:
    trace, left = service.trace, list(calls)

    def trace_and_call(*arguments: Any) -> Any:
        lineage = trace(*arguments)
        if left:
            left.pop(0)()
        return lineage

    monkeypatch.setattr(service, "trace", trace_and_call)


def test_a_snapshot_that_is_recorded_after_the_files_were_read_is_seen(
    database: Database, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.asks("anna", "anna-1")
    begins(world, "c1")
    while_files_are_read(monkeypatch, lambda: freeze(world))
    done = erase(database, world.storage, user="anna")
    assert [seen.cycle_id for seen in done.seen] == ["c1"]
    assert any("Still running" in step and "c1" in step for step in done.next_steps)


def test_it_does_not_look_for_ever(database: Database, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.asks("anna", "anna-1")
    for number in range(6):
        begins(world, f"c{number}")
    while_files_are_read(monkeypatch, *(lambda name=f"c{number}": freeze(world, name) for number in range(6)))
    with pytest.raises(ConflictError, match="Nothing was erased; erase again"):
        erase(database, world.storage, user="anna")
    assert world.count(interactions) == 1


@pytest.mark.postgres
@pytest.mark.parametrize("way", ["erase", "expire"])
def test_a_record_that_is_uploaded_while_it_is_erased_goes_too(
    postgres_database: Database, tmp_path: Path, way: str
) -> None:
    database, world = postgres_database, World(postgres_database, tmp_path / "artifacts")  # SQLite has one writer
    world.asks("anna", "anna-1", created_at=NOW - timedelta(days=40))
    ways: dict[str, Callable[[], Any]] = {
        "erase": lambda: erase(database, world.storage, user="anna"),
        "expire": lambda: expire(database, NOW, 30),
    }
    erasing = threading.Thread(target=ways[way])
    with database.transaction() as connection:
        share_turn(connection, "erasures")  # as an upload does
        copied = {**connection.execute(select(interactions)).one()._mapping, "id": "anna-2"}
        connection.execute(insert(interactions).values(copied))
        erasing.start()
        erasing.join(0.5)
        assert erasing.is_alive()
    erasing.join(PATIENCE_SECONDS)
    assert world.count(interactions) == 0
