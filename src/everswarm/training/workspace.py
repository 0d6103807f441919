"""Where a stage gets its files from and leaves them: the server's artifact store, or a folder.

A stage knows neither HTTP nor the other stages; it knows a workspace.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from everswarm.client import EverswarmClient
from everswarm.errors import NotFoundError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.job import Progress

KEPT_SECONDS = 7 * 24 * 3600  # in the folder of files that were here before


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


class LocalWorkspace:
    """Everything in one folder; for tests, examples and notebooks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "scratch"
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
        """Hand it to the worker, which sends it with the next beat, at once."""
        self.emit({"checkpoint": checkpoint})

    def report(self, done: int, total: int, note: str = "") -> None:
        """Hand it to the worker."""
        self.emit({"progress": Progress(done=done, total=total, note=note[:300]).model_dump()})


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
