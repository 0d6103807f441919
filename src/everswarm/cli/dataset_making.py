"""A dataset version from what a home holds, without a cycle: made aside first, then kept whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson
from sqlalchemy import Connection

from everswarm.errors import ConflictError, NoSpaceError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Dataset, Snapshot
from everswarm.schemas.job import CycleParameters, Job, Stage
from everswarm.server.cycles.stages import store_review, take_snapshot
from everswarm.server.database import Database
from everswarm.server.feedback.repository import erased_among
from everswarm.server.registry.datasets import keep_dataset, name_of
from everswarm.server.registry.service import CHUNK_BYTES, ArtifactStore
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
                chunks = iter(lambda file=file: file.read(CHUNK_BYTES), b"")  # type: ignore[misc]
                store.put_stream(chunks, sha256=artifact.sha256, kind=artifact.kind, name=artifact.name)


class Made(NamedTuple):
    """A dataset version, and where its files are for now."""

    dataset: Dataset
    snapshot: Snapshot
    files: FilesAside


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
    scrubber = settings.feedback.scrubber
    snapshot = take_snapshot(database, files, role=parameters.role, student=parameters.student, scrubber=scrubber)
    job = Job(
        id="by-hand",
        cycle_id="by-hand",
        stage=Stage.CURATE,
        parameters=parameters,
        inputs={Stage.SNAPSHOT: snapshot.model_dump(mode="json")},
    )
    return Made(curate_stage(job, files, settings), snapshot, files)


def keep(database: Database, store: ArtifactStore, made: Made) -> bool:
    """Store a dataset with its files, put what is suspicious into the review queue; return whether it is new.

    The record that names the files comes first, so that an erasure finds all that holds texts whatever is cut off.
    Done again it adds nothing, and completes what was cut off.

    Raises:
        ConflictError: some of it was erased meanwhile; nothing is stored.
        NoSpaceError: the disk is full; a call with more room completes it.
    """
    with database.read() as connection:
        _refuse_what_was_erased(connection, made)
    is_new = store.find(made.dataset.data.sha256) is None
    try:
        keep_dataset(store, made.dataset)
        made.files.move_to(store)
        store_review(database, made.files, made.dataset)
    except NoSpaceError as error:
        raise NoSpaceError(
            f"{error} The dataset {name_of(made.dataset)} is not complete. Free some space and run the command again: "
            "it goes on from what is stored."
        ) from error
    return is_new


def _refuse_what_was_erased(connection: Connection, made: Made) -> None:
    gone = sum(len(erased_among(connection, ids)) for ids in _frozen_ids(made))
    if gone:
        raise ConflictError(
            f"{gone} interactions were erased while the dataset was made of them. Nothing was stored; run the command "
            "again."
        )


def _frozen_ids(made: Made) -> Iterator[list[str]]:
    ids: list[str] = []
    with made.files.open(made.snapshot.data.sha256) as lines:
        for line in lines:
            ids.append(orjson.loads(line)["id"])
            if len(ids) == IDS_AT_ONCE:
                yield ids
                ids = []
    yield ids
