"""The artifact store: bytes in and out by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO

from fastapi import Depends, Request

from everswarm.errors import DigestMismatchError, NotFoundError, TooLargeError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.server.database import Database
from everswarm.server.registry import repository
from everswarm.server.registry.storage import PendingFile, open_storage

CHUNK_BYTES = 1 << 20
ERASED_PREFIX = "erased: "  # of the name of an artifact whose file was deleted for somebody, or is about to be

MAX_ARTIFACT_BYTES = 20 * 1024**3  # a 7B model in 16 bits is 15 GB


class ArtifactStore:
    """Files named by their sha256. Safe to use from many threads."""

    def __init__(self, root_url: str, database: Database) -> None:
        """Open the store at `root_url`: a folder, or any URL that fsspec reads."""
        self._storage = open_storage(root_url)
        self._database = database

    def put_stream(
        self,
        chunks: Iterable[bytes],
        *,
        sha256: str,
        kind: ArtifactKind,
        name: str,
        size_limit: int = MAX_ARTIFACT_BYTES,
    ) -> Artifact:
        """Store `chunks`, which promise to be `sha256`. What is there already is not written again.

        Raises:
            DigestMismatchError: the bytes are others; nothing is left behind.
            TooLargeError: more than `size_limit` bytes; nothing is left behind.
            NoSpaceError: the disk is full; nothing is left behind.
        """
        existing = self.find(sha256)
        if existing is not None:
            return existing
        with self.begin(sha256, kind=kind, name=name, size_limit=size_limit) as upload:
            for chunk in chunks:
                upload.write(chunk)
            return upload.finish()

    def put_bytes(self, data: bytes, *, kind: ArtifactKind, name: str) -> Artifact:
        """Store `data` under its own digest."""
        return self.put_stream([data], sha256=hashlib.sha256(data).hexdigest(), kind=kind, name=name)

    def put_file(self, path: Path, *, kind: ArtifactKind) -> Artifact:
        """Store the file at `path` under its own digest and name."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            return self.put_stream(chunks, sha256=sha256, kind=kind, name=path.name)

    def begin(self, sha256: str, *, kind: ArtifactKind, name: str, size_limit: int = MAX_ARTIFACT_BYTES) -> Upload:
        """Start to receive the file with this digest, piece by piece."""
        return Upload(
            self._database, self._storage.begin(sha256), sha256=sha256, kind=kind, name=name, size_limit=size_limit
        )

    def find(self, sha256: str) -> Artifact | None:
        """Return the artifact if it is known and its file is there, so that a lost file may be stored again."""
        with self._database.read() as connection:
            artifact = repository.find_artifact(connection, sha256)
        return artifact if artifact is not None and self._storage.exists(sha256) else None

    def get(self, sha256: str) -> Artifact:
        """Return what is known of the file.

        Raises:
            NotFoundError: it was never stored.
        """
        with self._database.read() as connection:
            artifact = repository.find_artifact(connection, sha256)
        if artifact is None:
            raise NotFoundError(f"There is no artifact with the sha256 {sha256} on this server.")
        return artifact

    def open(self, sha256: str) -> BinaryIO:
        """Open the file for reading.

        Raises:
            NotFoundError: it was never stored, or its file is gone.
        """
        artifact = self.get(sha256)
        try:
            return self._storage.open(sha256)
        except FileNotFoundError as error:
            raise file_is_gone(artifact) from error

    def delete_kind(self, kind: ArtifactKind) -> int:
        """Delete all artifacts of one kind and return how many there were; for what is only needed for a while."""
        with self._database.transaction() as connection:
            found = repository.artifacts_of_kind(connection, kind)
            for sha256 in found:
                repository.forget_artifact(connection, sha256)
        for sha256 in found:
            self._storage.delete(sha256)
        return len(found)

    def local_path(self, sha256: str) -> Path | None:
        """Return where the file is on this machine; None when the store is elsewhere or the file is not there."""
        return self._storage.local_path(sha256)


class Upload:
    """A file on its way in. Used as a context: what was not finished when it ends is discarded."""

    def __init__(
        self, database: Database, pending: PendingFile, *, sha256: str, kind: ArtifactKind, name: str, size_limit: int
    ) -> None:
        """Begun by `ArtifactStore.begin`."""
        self._database = database
        self._pending = pending
        self._promised = sha256
        self._kind, self._name, self._size_limit = kind, name, size_limit
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._finished = False

    def write(self, data: bytes) -> None:
        """Append `data`.

        Raises:
            TooLargeError: that is more than the limit.
        """
        self._size_bytes += len(data)
        if self._size_bytes > self._size_limit:
            raise too_large(self._name, limit_bytes=self._size_limit)
        self._hash.update(data)
        self._pending.write(data)

    def finish(self) -> Artifact:
        """Check the digest, put the file in its place, then remember it.

        Raises:
            DigestMismatchError: the bytes are not those that were promised.
        """
        found = self._hash.hexdigest()
        if found != self._promised:
            raise DigestMismatchError(self._name, expected=self._promised, found=found)
        artifact = Artifact(sha256=found, size_bytes=self._size_bytes, kind=self._kind, name=self._name)
        self._pending.commit()
        self._finished = True
        with self._database.transaction() as connection:
            repository.store_artifact(connection, artifact)
            return repository.find_artifact(connection, found) or artifact

    def discard(self) -> None:
        """Leave nothing behind; without effect after `finish`."""
        if not self._finished:
            self._pending.discard()

    def __enter__(self) -> Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()


def too_large(name: str, *, limit_bytes: int) -> TooLargeError:
    """Return the error for a file over the limit."""
    return TooLargeError(f"{name} is larger than {limit_bytes:,} bytes, the most that one artifact may have.")


def file_is_gone(artifact: Artifact) -> NotFoundError:
    """Return the error for an artifact that is known and whose file is lost, or was erased."""
    if artifact.name.startswith(ERASED_PREFIX):
        return NotFoundError(
            f"The file of the artifact {artifact.sha256} was erased with what a person wanted forgotten, and does not "
            "come back. A new cycle makes files without it."
        )
    return NotFoundError(
        f"The file of the artifact {artifact.name} ({artifact.sha256}) is missing from the store. "
        "Restore it from a backup, or send it again."
    )


def _artifacts_of(request: Request) -> ArtifactStore:
    store: ArtifactStore = request.app.state.artifacts
    return store


ArtifactsDep = Annotated[ArtifactStore, Depends(_artifacts_of)]
