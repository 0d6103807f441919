"""Which cycles have seen somebody: their snapshots and datasets are read as streams. Deletes nothing.

Datasets that were made without a cycle are looked at like those of a cycle that ended, under their own name.

A dataset without `members`, of an early version, is known by its `split_of_user` alone, which does not say how many
records are theirs.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

import orjson
from sqlalchemy import Connection, select

from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.erasure import Seen
from everswarm.schemas.job import Stage
from everswarm.server.cycles.repository import artifacts_in
from everswarm.server.cycles.tables import cycles, stages
from everswarm.server.database import Database
from everswarm.server.erasure import repository
from everswarm.server.fleet.repository import newest_release, release_of_cycle
from everswarm.server.fleet.tables import devices
from everswarm.server.registry.datasets import KeptDataset, kept_datasets
from everswarm.server.registry.storage import Storage

RUNNING = "running"
CURATED = "curated"  # the state of a dataset without a cycle
OF_SNAPSHOTS = frozenset({ArtifactKind.SNAPSHOT, ArtifactKind.SUSPICIONS})
OF_DATASETS = frozenset({ArtifactKind.DATASET, ArtifactKind.SOFT_TARGETS, ArtifactKind.CHECKPOINT, ArtifactKind.RECORD})


class Traces(NamedTuple):
    """What tells one's records from others' in frozen files."""

    ids: frozenset[str]  # of interactions
    people: frozenset[str]  # pseudonyms, and the names of before there were any


class Lineage(NamedTuple):
    """What has seen somebody."""

    seen: list[Seen]  # the newest first
    files: frozenset[str]  # digests of what holds their texts and no running cycle needs
    read: frozenset[str]  # cycles, and datasets without one, that were looked at

    @property
    def running(self) -> list[str]:
        """The cycles among them that have not ended."""
        return [seen.cycle_id for seen in self.seen if seen.cycle_state == RUNNING]


def trace(database: Database, storage: Storage, traces: Traces) -> Lineage:
    """Read the files of all cycles, and of datasets without one, one after another, each file once."""
    reader = _Reader(storage, traces)
    seen: list[Seen] = []
    files: set[str] = set()
    in_use: set[str] = set()
    with database.read() as connection:
        sources = _sources(connection, storage)
    for source in sources:
        with database.read() as connection:
            made = source.made or _Made.of_cycle(connection, source.id)
        if source.state == RUNNING:
            in_use |= {artifact.sha256 for artifact in made.artifacts}
        found = reader.look_at(source, made)
        if found is None:
            continue
        with database.read() as connection:
            seen.append(_with_what_followed(connection, found, made))
        if source.state != RUNNING:
            files |= _files_with_texts(seen[-1], made)
    return Lineage(seen, frozenset(files - in_use), frozenset(source.id for source in sources))


def needed_by_running(database: Database) -> set[str]:
    """Return the digests of what running cycles have made so far, and go on from."""
    with database.read() as connection:
        running = connection.execute(select(cycles.c.id).where(cycles.c.state == RUNNING)).scalars().all()
        made = [_Made.of_cycle(connection, cycle_id) for cycle_id in running]
    return {artifact.sha256 for one in made for artifact in one.artifacts}


class _Made(NamedTuple):
    """What the stages of one cycle made."""

    results: Mapping[str, Mapping[str, Any]]  # of the finished ones
    artifacts: tuple[Artifact, ...]  # named in results and checkpoints
    finished: Mapping[str, Any]

    @classmethod
    def of_cycle(cls, connection: Connection, cycle_id: str) -> _Made:
        columns = (stages.c.stage, stages.c.state, stages.c.result, stages.c.checkpoint, stages.c.finished_at)
        rows = connection.execute(select(*columns).where(stages.c.cycle_id == cycle_id)).all()
        results = {row.stage: row.result for row in rows if row.state == "done" and row.result is not None}
        named = [artifact for row in rows for value in (row.result, row.checkpoint) for artifact in artifacts_in(value)]
        return cls(results, tuple(named), {row.stage: row.finished_at for row in rows})

    @classmethod
    def by_hand(cls, kept: KeptDataset) -> _Made:
        """Return what a dataset without a cycle is made of, as if two stages had made it."""
        snapshot = None if kept.snapshot is None else kept.snapshot.model_dump(mode="json")
        curated = kept.dataset.model_dump(mode="json")
        named = tuple(artifacts_in([snapshot, curated]))
        results = {Stage.SNAPSHOT.value: {"data": snapshot}, Stage.CURATE.value: curated}
        return cls(results, named, dict.fromkeys(results, kept.made_at))

    def first(self, stage: Stage, name: str) -> Artifact | None:
        """Return the artifact that a stage's record has under `name`."""
        return next(artifacts_in(self.results.get(stage, {}).get(name)), None)


class _Source(NamedTuple):
    """A cycle, or a dataset without one."""

    id: str
    state: str
    created_at: datetime
    made: _Made | None = None  # None: as the stages of the cycle say


def _sources(connection: Connection, storage: Storage) -> list[_Source]:
    """Return what may have seen somebody, the newest first."""
    columns = (cycles.c.id, cycles.c.state, cycles.c.created_at)
    found = [_Source(row.id, row.state, row.created_at) for row in connection.execute(select(*columns))]
    for kept in kept_datasets(connection, storage):
        found.append(_Source(kept.name, CURATED, kept.made_at, _Made.by_hand(kept)))
    return sorted(found, key=lambda source: (source.created_at, source.id), reverse=True)


class _Reader:
    """Looks into files, each once."""

    def __init__(self, storage: Storage, traces: Traces) -> None:
        self._storage = storage
        self._traces = traces
        self._counts: dict[str, int | None] = {}  # by digest; None: cannot be read

    def look_at(self, source: _Source, made: _Made) -> Seen | None:
        """Say what of a cycle holds them; None: nothing does."""
        snapshot = made.first(Stage.SNAPSHOT, "data")
        in_snapshot = self._count(snapshot, _count_in_snapshot)
        is_in_dataset, examples = self._in_dataset(made, in_snapshot)
        if not in_snapshot and not is_in_dataset:
            return None
        dataset = made.first(Stage.CURATE, "data") if is_in_dataset else None
        stage = Stage.SNAPSHOT if dataset is None else Stage.CURATE
        return Seen(
            cycle_id=source.id,
            cycle_state=source.state,
            made_at=made.finished.get(stage) or source.created_at,
            snapshot=snapshot.sha256 if snapshot is not None and in_snapshot else None,
            dataset=None if dataset is None else dataset.sha256,
            examples=examples if is_in_dataset else None,
        )

    def _in_dataset(self, made: _Made, in_snapshot: int | None) -> tuple[bool, int | None]:
        """Say whether the dataset has any of them, and how many where that is known."""
        curated = made.results.get(Stage.CURATE)
        if curated is None:
            return False, None
        members = self._count(made.first(Stage.CURATE, "members"), _count_in_members)
        if members is not None:
            return members > 0, members
        if in_snapshot is not None:  # who is not in the snapshot cannot be in what was made of it
            return in_snapshot > 0, None
        return bool(self._traces.people & curated.get("split_of_user", {}).keys()), None

    def _count(self, artifact: Artifact | None, count: Any) -> int | None:
        if artifact is None:
            return None
        if artifact.sha256 not in self._counts:
            try:
                with self._storage.open(artifact.sha256) as file:
                    self._counts[artifact.sha256] = count(file, self._traces)
            except (OSError, EOFError, zlib.error, ValueError):  # gone, or damaged
                self._counts[artifact.sha256] = None
        return self._counts[artifact.sha256]


def _count_in_members(file: BinaryIO, traces: Traces) -> int:
    """Count the lines `id TAB pseudonym` of a gzip file that are theirs."""
    ids, people = _encoded(traces.ids), _encoded(traces.people)
    count = 0
    with gzip.open(file) as lines:
        for line in lines:
            identifier, _, user = line.rstrip(b"\n").partition(b"\t")
            count += user in people or identifier in ids
    return count


def _count_in_snapshot(file: BinaryIO, traces: Traces) -> int:
    """Count the JSON lines that are theirs."""
    count = 0
    for line in file:
        record = orjson.loads(line)
        count += record["device_id"] in traces.people or record["id"] in traces.ids
    return count


def _encoded(names: Collection[str]) -> frozenset[bytes]:
    return frozenset(name.encode() for name in names)


def _with_what_followed(connection: Connection, seen: Seen, made: _Made) -> Seen:
    """Name what was trained on the dataset, scored with it, released, and told to devices."""
    if seen.dataset is None:
        return seen
    adapter = made.first(Stage.DISTILL, "weights")
    known: dict[str, Any] = {"adapter": adapter and adapter.sha256, "evaluation": _evaluation_of(connection, seen)}
    release = release_of_cycle(connection, seen.cycle_id)
    if release is not None:
        newest = newest_release(connection, release.role)
        told = connection.execute(select(devices.c.device_id).where(devices.c.release_id == release.id)).scalars()
        names = sorted(told)
        known |= {"release": release.version, "role": release.role, "devices": names, "device_count": len(names)}
        known["release_state"] = "in use" if newest is not None and newest.id == release.id else "superseded"
    return seen.model_copy(update=known)


def _evaluation_of(connection: Connection, seen: Seen) -> str | None:
    return repository.find_artifact_named(connection, f"evaluation-{seen.cycle_id}.json")


def _files_with_texts(seen: Seen, made: _Made) -> set[str]:
    """Return what of a cycle holds their texts. Weights do not, and `members` tells who is in a dataset."""
    kinds = OF_SNAPSHOTS | OF_DATASETS if seen.dataset is not None else OF_SNAPSHOTS
    files = {artifact.sha256 for artifact in made.artifacts if artifact.kind in kinds}
    return files | {seen.evaluation} if seen.evaluation is not None else files
