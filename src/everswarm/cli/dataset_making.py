"""A dataset version from what a home holds, without a cycle: made aside first, then kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson
from sqlalchemy import Connection

from everswarm.errors import ConflictError, NoSpaceError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Dataset, Snapshot
from everswarm.schemas.job import CycleParameters, Job, Stage
from everswarm.server.cycles.stages import forget_files, store_review, take_snapshot
from everswarm.server.database import Database, share_turn
from everswarm.server.erasure.repository import touched_among
from everswarm.server.feedback.repository import erased_among
from everswarm.server.registry.datasets import keep_dataset, name_of
from everswarm.server.registry.service import CHUNK_BYTES, ArtifactStore
from everswarm.server.registry.storage import open_storage
from everswarm.settings import Settings
from everswarm.training.pipeline import curate_stage
from everswarm.training.workspace import LocalWorkspace

OnProgress = Callable[[int, int, str], None]  # done, of so many (0: not known), what
IDS_AT_ONCE = 100_000


class FilesAside(ArtifactStore, LocalWorkspace):
    """The store and the workspace of one curation: files in a folder, known to nobody else until `move_to`."""

    def __init__(self, folder: Path, database: Database, on_progress: OnProgress) -> None:
        """Use `folder`, which somebody else deletes."""
        ArtifactStore.__init__(self, str(folder / "store"), database)
        LocalWorkspace.__init__(self, folder)
        self._on_progress = on_progress
        self._held: dict[str, Artifact] = {}

    @property
    def digests(self) -> set[str]:
        """Of all files that are held."""
        return set(self._held)

    def put_file(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Hold a copy of the file."""
        artifact = LocalWorkspace.store(self, path, kind=kind)
        self._held[artifact.sha256] = artifact
        return artifact

    def store(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Hold a copy of the file."""
        return self.put_file(path, kind=kind)

    def open(self, sha256: str) -> BinaryIO:
        """Open a file that is held."""
        return self.fetch(self._held[sha256]).open("rb")

    def report(self, done: int, total: int, note: str = "") -> None:
        """Tell it at once."""
        self._on_progress(done, total, note)

    def move_to(self, store: ArtifactStore) -> None:
        """Put all files into `store`; what is there already is not written again."""
        for number, artifact in enumerate(self._held.values()):
            self.report(number, len(self._held), f"storing {artifact.name}")
            with self.open(artifact.sha256) as file:
                chunks = iter(partial(file.read, CHUNK_BYTES), b"")
                store.put_stream(chunks, sha256=artifact.sha256, kind=artifact.kind, name=artifact.name)


class Made(NamedTuple):
    """A dataset version, and where its files are for now."""

    dataset: Dataset
    snapshot: Snapshot
    files: FilesAside
    begun: datetime  # what was erased before is not in it
    artifacts_root: str  # where it is to be kept


def make_dataset(
    database: Database, settings: Settings, parameters: CycleParameters, *, folder: Path, on_progress: OnProgress
) -> Made:
    """Freeze the feedback and curate it, as a cycle with `parameters` would; nothing is stored but in `folder`.

    Raises:
        NotEnoughFeedbackError: says what was dropped, and why.
        MissingExtraError: curating needs an extra that is not installed.
    """
    files = FilesAside(folder, database, on_progress)
    files.report(0, 0, "freezing the feedback")
    with database.transaction() as connection:
        share_turn(connection, "erasures")  # one that is under way would be dated earlier, and not be seen yet
        begun = datetime.now(UTC)
    scrubber = settings.feedback.scrubber
    snapshot = take_snapshot(database, files, role=parameters.role, student=parameters.student, scrubber=scrubber)
    job = Job(
        id="by-hand",
        cycle_id="by-hand",
        stage=Stage.CURATE,
        parameters=parameters,
        inputs={Stage.SNAPSHOT: snapshot.model_dump(mode="json")},
    )
    return Made(curate_stage(job, files, settings), snapshot, files, begun, settings.artifacts_root)


def keep(database: Database, store: ArtifactStore, made: Made) -> bool:
    """Store a dataset with its files, put what is suspicious into the review queue; return whether it is new.

    The record that names the files comes first, so that an erasure finds all that holds texts whatever is cut off.
    Done again it adds nothing, and completes what was cut off.

    Raises:
        ConflictError: some of it was erased meanwhile; nothing is stored.
        NoSpaceError: the disk is full; a call with more room completes it.
    """
    with database.read() as connection:
        _refuse(_erased_meanwhile(connection, made))
    there = {sha256 for sha256 in made.files.digests if store.find(sha256) is not None}
    is_new = made.dataset.data.sha256 not in there
    try:
        record = keep_dataset(store, made.dataset)
        made.files.move_to(store)
        stored = made.files.digests | {record.sha256} if is_new else made.files.digests - there
        _take_back_if_erased(database, made, stored)
        store_review(database, made.files, made.dataset)
    except NoSpaceError as error:
        raise NoSpaceError(
            f"{error} The dataset {name_of(made.dataset)} is not complete. Free some space and run the command again: "
            "it goes on from what is stored."
        ) from error
    return is_new


def _take_back_if_erased(database: Database, made: Made, stored: set[str]) -> None:
    """Look once more: an erasure that ends later finds the record, and one that ended before did not."""
    with database.transaction() as connection:
        share_turn(connection, "erasures")
        what = _erased_meanwhile(connection, made)
        if what is not None:
            forget_files(connection, open_storage(made.artifacts_root), stored, dataset=name_of(made.dataset))
    _refuse(what)


def _refuse(what: str | None) -> None:
    if what is not None:
        raise ConflictError(
            f"{what} were erased while the dataset was made of them. Nothing was stored; run the command again."
        )


def _erased_meanwhile(connection: Connection, made: Made) -> str | None:
    """Say what is in the snapshot and was erased by now; None where nothing was."""
    gone = sum(len(erased_among(connection, ids)) for ids in _frozen_ids(made))
    if gone:
        return f"{gone} interactions"
    touched = sum(touched_among(connection, ids, since=made.begun) for ids in _frozen_ids(made))
    return f"Judgements of {touched} interactions" if touched else None


def _frozen_ids(made: Made) -> Iterator[list[str]]:
    ids: list[str] = []
    with made.files.open(made.snapshot.data.sha256) as lines:
        for line in lines:
            ids.append(orjson.loads(line)["id"])
            if len(ids) == IDS_AT_ONCE:
                yield ids
                ids = []
    yield ids
