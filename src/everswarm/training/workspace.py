"""Where a stage gets its files from and leaves them: the server's artifact store, or a folder.

A stage knows neither HTTP nor the other stages; it knows a workspace.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from everswarm.client import EverswarmClient
from everswarm.client.batches import answer_batch, delete_files
from everswarm.errors import NotFoundError, StageFailedError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.job import Progress

KEPT_SECONDS = 7 * 24 * 3600  # in the folder of files that were here before


class AnswerBatch(Protocol):
    """Has questions answered by models that the server knows, within their quotas; may take hours."""

    def __call__(
        self,
        requests: Path,
        *,
        batch: str | None,
        on_batch: Callable[[str], None],
        on_wait: Callable[[str], None],
    ) -> Path:
        """Return JSON lines of OpenAI's batch output, the lines of the error file behind them.

        Args:
            requests: JSON lines of chat requests in OpenAI's batch form.
            batch: what an earlier try asked for these; asked anew if it is gone.
            on_batch: told the id of a new batch as soon as it exists, for the checkpoint.
            on_wait: told now and then what it waits for.

        Raises:
            StageFailedError: there is nobody to ask, or the questions cannot be used.
            UnavailableError: the server does not answer.
        """


class Workspace(Protocol):
    """What a stage may do beyond computing."""

    folder: Path  # for files that may be lost

    def fetch(self, artifact: Artifact) -> Path:
        """Return a local file with the artifact's bytes; do not change it."""

    def store(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Keep the file at `path` for later stages."""

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember how far the stage is; its artifacts are stored already."""

    def report(self, done: int, total: int, note: str = "") -> None:
        """Tell people how far the stage is."""

    def answer_batch(
        self,
        requests: Path,
        *,
        batch: str | None,
        on_batch: Callable[[str], None],
        on_wait: Callable[[str], None],
    ) -> Path:
        """Have questions answered by models that the server knows; see `AnswerBatch`."""


class LocalWorkspace:
    """Everything in one folder; for tests, examples and notebooks. `answer` is who answers batches, if anybody."""

    def __init__(self, folder: Path, *, answer: AnswerBatch | None = None) -> None:
        self.folder = folder / "scratch"
        self.answer = answer
        self.store_folder = folder / "artifacts"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store_folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint: dict[str, Any] | None = None
        self.reports: list[Progress] = []

    def fetch(self, artifact: Artifact) -> Path:
        """Return the stored file."""
        path = self.store_folder / artifact.sha256
        if not path.exists():
            raise NotFoundError(f"{artifact.name} ({artifact.sha256}) is not in {self.store_folder}.")
        return path

    def store(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Copy the file into the store."""
        artifact = describe(path, kind=kind)
        keep(path, self.store_folder / artifact.sha256, link=False)  # the stage may write to `path` again
        return artifact

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep it as an attribute."""
        self.checkpoint = checkpoint

    def report(self, done: int, total: int, note: str = "") -> None:
        """Keep it in a list."""
        self.reports.append(Progress(done=done, total=total, note=note[:300]))

    def answer_batch(
        self,
        requests: Path,
        *,
        batch: str | None,
        on_batch: Callable[[str], None],
        on_wait: Callable[[str], None],
    ) -> Path:
        """Ask whom this workspace was given.

        Raises:
            StageFailedError: it was given nobody.
        """
        if self.answer is None:
            raise StageFailedError(
                "A teacher behind an endpoint answers through the server's batches, and this workspace has no server. "
                "Give LocalWorkspace(answer=…), or run the stage with: everswarm worker."
            )
        return self.answer(requests, batch=batch, on_batch=on_batch, on_wait=on_wait)


class HttpWorkspace:
    """The server's artifact store, with a folder of files that were here before."""

    def __init__(
        self, client: EverswarmClient, *, folder: Path, cache: Path, emit: Callable[[dict[str, Any]], None]
    ) -> None:
        self.client = client
        self.folder = folder
        self.cache = cache
        self.emit = emit
        self.uploaded_bytes = 0
        self.downloaded_bytes = 0
        self._answered: dict[str, list[str]] = {}  # files of batches that a checkpoint may still name
        self._told = ""  # the last checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        _forget_old(cache)

    def fetch(self, artifact: Artifact) -> Path:
        """Download the artifact, checked by its digest, unless one of this name is here."""
        path = self.cache / artifact.sha256
        if not path.exists():
            self.downloaded_bytes += self.client.fetch_artifact(artifact, path)
        return path

    def store(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Upload the file unless the server has it, and keep a link here so that it is not downloaded again."""
        artifact = describe(path, kind=kind)
        if not self.client.has_artifact(artifact.sha256):
            self.client.put_artifact(path, kind=kind)
            self.uploaded_bytes += artifact.size_bytes
        keep(path, self.cache / artifact.sha256)
        return artifact

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hand it to the worker, which sends it with the next beat, at once.

        The files of answered batches that neither it nor the one before names are deleted: a later try does not need
        them. That one may be on its way to the server still, and is the first that can be lost.
        """
        self.emit({"checkpoint": checkpoint})
        told = json.dumps(checkpoint)
        self._delete_answered(named=told + self._told)
        self._told = told

    def finish(self) -> None:
        """Delete the files of answered batches that the last checkpoint does not name: the stage has its result."""
        self._delete_answered(named=self._told)

    def _delete_answered(self, *, named: str) -> None:
        for batch in [batch for batch in self._answered if batch not in named]:
            delete_files(self.client, self._answered.pop(batch))

    def report(self, done: int, total: int, note: str = "") -> None:
        """Hand it to the worker."""
        self.emit({"progress": Progress(done=done, total=total, note=note[:300]).model_dump()})

    def answer_batch(
        self,
        requests: Path,
        *,
        batch: str | None,
        on_batch: Callable[[str], None],
        on_wait: Callable[[str], None],
    ) -> Path:
        """Ask the server, and keep what it answers until a checkpoint says that it is not needed any more."""
        out = requests.with_suffix(".answers.jsonl")
        answers = answer_batch(self.client, requests, out, batch=batch, on_batch=on_batch, on_wait=on_wait)
        self._answered[answers.batch.id] = answers.batch.files
        return answers.path


def _forget_old(cache: Path) -> None:
    """Delete what came more than a week ago; the server still has it."""
    for path in cache.iterdir():
        if time.time() - path.stat().st_mtime > KEPT_SECONDS:
            path.unlink(missing_ok=True)


def describe(path: Path, *, kind: ArtifactKind) -> Artifact:
    """Return the artifact that the file at `path` is."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(sha256=sha256, size_bytes=path.stat().st_size, kind=kind, name=path.name)


def keep(path: Path, place: Path, *, link: bool = True) -> None:
    """Put the file at `path` also at `place`, in one step: a link if it may be one and can be, else a copy."""
    if place.exists():
        return
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    linked = False
    if link:
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(path, temporary)
            linked = True
    if not linked:
        shutil.copyfile(path, temporary)
    temporary.replace(place)
