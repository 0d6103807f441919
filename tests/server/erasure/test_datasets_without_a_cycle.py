"""Datasets that were made without a cycle: an erasure finds them by their records."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from tests.server.erasure.world import World

from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Dataset
from everswarm.server.erasure import erase, service
from everswarm.server.registry.datasets import keep_dataset, kept_datasets

COUNTS = {"train": 1, "validation": 0, "test": 0}


def curates(world: World, members: Mapping[str, str], *, frozen: Mapping[str, str] | None = None) -> Dataset:
    """Keep a dataset of `members` (interaction → user), made of a snapshot of those or `frozen`."""
    pseudonym = world.database.seal.pseudonym
    in_snapshot = frozen or members
    lines = [orjson.dumps({"id": name, "device_id": pseudonym(user)}) for name, user in in_snapshot.items()]
    listed = "".join(f"{name}\t{pseudonym(user)}\n" for name, user in members.items()).encode()

    def keeps(data: bytes, kind: ArtifactKind, name: str) -> Artifact:
        return world.artifacts.put_bytes(data, kind=kind, name=name)

    snapshot = keeps(b"\n".join(lines), ArtifactKind.SNAPSHOT, "snapshot.jsonl")
    dataset = Dataset.model_validate(
        {
            "data": keeps(b"parquet of " + listed, ArtifactKind.DATASET, "dataset.parquet"),
            "members": keeps(gzip.compress(listed, mtime=0), ArtifactKind.MEMBERS, "members.tsv.gz"),
            "card": {
                "read": len(lines), "dropped": [], "examples": COUNTS, "users": COUNTS, "shares": COUNTS,
                "sources": {}, "seed": 0, "parents": [snapshot.sha256],
            },
            "split_of_user": {pseudonym(user): "train" for user in members.values()},
        }
    )  # fmt: skip
    keep_dataset(world.artifacts, dataset)
    return dataset


def test_it_is_named_and_its_files_go(world: World) -> None:
    world.asks("anna", "a-1")
    world.asks("bert", "b-1")
    dataset = curates(world, {"a-1": "anna", "b-1": "bert"})
    done = erase(world.database, world.storage, user="anna", files=True)
    [seen] = done.seen
    assert (seen.cycle_id, seen.cycle_state) == (f"dataset-{dataset.data.sha256[:12]}", "curated")
    assert (seen.dataset, seen.snapshot, seen.examples) == (dataset.data.sha256, dataset.card.parents[0], 1)
    assert (done.files, done.files_deleted) == (2, True)
    assert not world.storage.exists(dataset.data.sha256)
    assert not world.storage.exists(dataset.card.parents[0])


def test_after_its_files_went_it_still_tells_who_was_in_it(world: World) -> None:
    world.asks("anna", "a-1")
    world.asks("bert", "b-1")
    dataset = curates(world, {"a-1": "anna", "b-1": "bert"})
    erase(world.database, world.storage, user="anna", files=True)
    done = erase(world.database, world.storage, user="bert", files=True)
    assert [seen.dataset for seen in done.seen] == [dataset.data.sha256]
    assert done.files == 0


def test_who_is_not_in_it_leaves_it_alone(world: World) -> None:
    world.asks("anna", "a-1")
    world.asks("bert", "b-1")
    dataset = curates(world, {"b-1": "bert"})
    done = erase(world.database, world.storage, user="anna", files=True)
    assert done.seen == []
    assert world.storage.exists(dataset.data.sha256)


def test_whose_record_was_dropped_is_in_the_snapshot_only(world: World) -> None:
    world.asks("anna", "a-1")
    dataset = curates(world, {"b-1": "bert"}, frozen={"a-1": "anna", "b-1": "bert"})
    done = erase(world.database, world.storage, user="anna", files=True)
    assert [(seen.dataset, seen.snapshot) for seen in done.seen] == [(None, dataset.card.parents[0])]
    assert world.storage.exists(dataset.data.sha256)
    assert not world.storage.exists(dataset.card.parents[0])


def test_cycles_and_datasets_come_the_newest_first(world: World) -> None:
    world.asks("anna", "a-1")
    curates(world, {"a-1": "anna"})  # now, and the cycle long before
    world.runs_cycle("c1", {"a-1": "anna"})
    seen = erase(world.database, world.storage, user="anna", dry_run=True).seen
    assert sorted(seen, key=lambda one: one.made_at, reverse=True) == seen
    assert {one.cycle_state for one in seen} == {"curated", "released"}


def test_what_a_running_cycle_needs_stays(world: World) -> None:
    world.asks("anna", "a-1")
    made = world.runs_cycle("c1", {"a-1": "anna"}, state="running")
    curated = Dataset.model_validate(
        curates(world, {"a-1": "anna"}).model_dump() | {"data": made["dataset"]}
    )  # the same file as the cycle's
    keep_dataset(world.artifacts, curated)
    erase(world.database, world.storage, user="anna", files=True)
    assert world.has_file(made["dataset"])


def test_a_record_whose_file_is_lost_is_passed_over(world: World) -> None:
    world.asks("anna", "a-1")
    dataset = curates(world, {"a-1": "anna"})
    record = keep_dataset(world.artifacts, dataset)
    world.storage.delete(record.sha256)
    assert erase(world.database, world.storage, user="anna", dry_run=True).seen == []


def test_keeping_a_dataset_again_adds_nothing(world: World) -> None:
    curates(world, {"a-1": "anna"})
    curates(world, {"a-1": "anna"})
    with world.database.read() as connection:
        assert len(kept_datasets(connection, world.storage)) == 1


def test_one_that_is_kept_after_the_files_were_read_is_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.asks("anna", "a-1")
    trace, calls = service.trace, []

    def trace_and_curate(*arguments: Any) -> Any:
        lineage = trace(*arguments)
        calls.append(curates(world, {"a-1": "anna"}))
        return lineage

    monkeypatch.setattr(service, "trace", trace_and_curate)
    done = erase(world.database, world.storage, user="anna", files=True)
    assert [seen.dataset for seen in done.seen] == [calls[0].data.sha256]
    assert not world.storage.exists(calls[0].data.sha256)
