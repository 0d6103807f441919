"""Where the bytes lie: a folder, or a URL. A file is there whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from everswarm.errors import BadRequestError, ConfigurationError, MissingExtraError, NoSpaceError

ABANDONED_SECONDS = 24 * 3600  # without a write, so that no upload of a neighbour is cut off
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PendingFile(Protocol):
    """Bytes on their way in; seen by nobody before `commit`."""

    def write(self, data: bytes) -> None:
        """Append `data`."""

    def commit(self) -> None:
        """Make the file visible under its digest, durably."""

    def discard(self) -> None:
        """Leave nothing behind."""


class Storage(Protocol):
    """A place for files named by their digest."""

    def begin(self, sha256: str) -> PendingFile:
        """Start to write the file with this digest."""

    def exists(self, sha256: str) -> bool:
        """Say whether the file is there."""

    def open(self, sha256: str) -> BinaryIO:
        """Open the file for reading; `FileNotFoundError` when it is not there."""

    def local_path(self, sha256: str) -> Path | None:
        """Return where the file is on this machine, if it is."""

    def delete(self, sha256: str) -> None:
        """Delete the file, if it is there."""


def open_storage(root_url: str) -> Storage:
    """Return the storage at `root_url`: a folder, a `file://` URL, or what fsspec has a driver for."""
    scheme, separator, rest = root_url.partition("://")
    if not separator:
        return FolderStorage(Path(root_url))
    return FolderStorage(Path(rest)) if scheme == "file" else UrlStorage(root_url)


class FolderStorage:
    """A folder of this machine: temporary file, fsync, rename."""

    def __init__(self, root: Path) -> None:
        """Make the folder, and clear what a killed server once left unfinished."""
        self._root = root
        self._incoming = root / "incoming"
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            self._remove_abandoned()
        except OSError as error:
            raise ConfigurationError(
                f"The artifact folder {root} cannot be made: {error.strerror}. "
                "Set EVERSWARM_ARTIFACTS_URL or EVERSWARM_HOME to a place that this user may write to."
            ) from error

    def begin(self, sha256: str) -> PendingFile:
        """Start to write the file with this digest."""
        return _PendingInFolder(self._incoming / uuid.uuid4().hex, self._path(sha256))

    def exists(self, sha256: str) -> bool:
        """Say whether the file is there."""
        return self._path(sha256).is_file()

    def open(self, sha256: str) -> BinaryIO:
        """Open the file for reading."""
        return self._path(sha256).open("rb")

    def local_path(self, sha256: str) -> Path | None:
        """Return where the file is, if it is there."""
        path = self._path(sha256)
        return path if path.is_file() else None

    def delete(self, sha256: str) -> None:
        """Delete the file, if it is there."""
        self._path(sha256).unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        oldest = time.time() - ABANDONED_SECONDS
        for path in self._incoming.iterdir():
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._root.joinpath(*_parts(sha256))


class _PendingInFolder:
    def __init__(self, temporary: Path, final: Path) -> None:
        self._temporary, self._final = temporary, final
        with no_space_explained():
            self._file = temporary.open("xb")

    def write(self, data: bytes) -> None:
        with no_space_explained():
            self._file.write(data)

    def commit(self) -> None:
        with no_space_explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._final.parent.mkdir(mode=0o700, exist_ok=True)
            self._temporary.replace(self._final)
            _sync_folder(self._final.parent)

    def discard(self) -> None:
        try:
            self._file.close()
        except OSError:
            pass  # the buffered rest did not fit on a full disk; it goes anyway
        finally:
            self._temporary.unlink(missing_ok=True)


class UrlStorage:
    """An object store through fsspec; a file appears when its upload is committed."""

    def __init__(self, root_url: str) -> None:
        """Connect to `root_url`, such as `s3://bucket/everswarm`."""
        try:
            import fsspec

            self._files, self._root = fsspec.core.url_to_fs(root_url)
        except ImportError as error:
            if getattr(error, "name", None) == "fsspec":
                raise MissingExtraError("An artifact store behind a URL", "server") from error
            raise ConfigurationError(
                f"The artifact URL {root_url!r} needs a driver that is not installed: {error}"
            ) from error
        except ValueError as error:
            raise ConfigurationError(f"The artifact URL {root_url!r} cannot be used: {error}") from error

    def begin(self, sha256: str) -> PendingFile:
        """Start to write the file with this digest."""
        path = self._path(sha256)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return _PendingInStore(self._files.open(path, "wb", autocommit=False))

    def exists(self, sha256: str) -> bool:
        """Say whether the file is there."""
        return bool(self._files.exists(self._path(sha256)))

    def open(self, sha256: str) -> BinaryIO:
        """Open the file for reading."""
        return cast(BinaryIO, self._files.open(self._path(sha256), "rb"))

    def local_path(self, sha256: str) -> Path | None:
        """Return None: the file is elsewhere."""
        return None

    def delete(self, sha256: str) -> None:
        """Delete the file, if it is there."""
        if self.exists(sha256):
            self._files.rm(self._path(sha256))

    def _path(self, sha256: str) -> str:
        return "/".join((self._root, *_parts(sha256)))


class _PendingInStore:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def commit(self) -> None:
        self._file.close()
        self._file.commit()

    def discard(self) -> None:
        self._file.close()
        self._file.discard()


@contextmanager
def no_space_explained() -> Iterator[None]:
    """Turn 'no space left on device' into our error."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        raise NoSpaceError(
            "The disk that holds the artifacts is full; nothing was kept of this file. "
            "Free some space and send it again."
        ) from error


def _parts(sha256: str) -> tuple[str, str]:
    """Return folder and file name; 256 folders keep each one short."""
    if not _SHA256.fullmatch(sha256):
        raise BadRequestError(f"{sha256[:80]!r} is not a sha256: 64 characters, 0-9 and a-f.")
    return sha256[:2], sha256


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows cannot open a folder and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
