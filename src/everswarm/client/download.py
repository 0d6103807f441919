"""Downloads that survive a broken line: resumed by byte range, checked by sha256, put in place in one step."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import httpx

from everswarm.client.problems import raise_for_problem
from everswarm.errors import DigestMismatchError, NoSpaceError, NotFoundError, UnavailableError
from everswarm.schemas.artifact import Artifact

TRIES = 5  # times that the line may break before we give up; what came so far is kept


def download_artifact(
    http: httpx.Client, artifact: Artifact, path: Path, *, on_bytes: Callable[[int], None] | None = None
) -> int:
    """Bring `artifact` to `path`; return the bytes that crossed the wire (0 when it was there).

    Raises:
        DigestMismatchError: wrong bytes; the partial file is deleted so that the next try starts clean.
        UnavailableError: the line broke too often; the partial file stays for the next try.
        NoSpaceError: the disk is full.
    """
    if path.exists() and path.stat().st_size == artifact.size_bytes and _sha256(path) == artifact.sha256:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size
        if on_bytes:
            on_bytes(size)

    for attempt in range(1, TRIES + 1):
        try:
            _continue(http, artifact, partial, count)
            break
        except httpx.TransportError as error:
            if attempt == TRIES:
                raise UnavailableError(
                    f"The download of {artifact.name} broke off {TRIES} times ({error or type(error).__name__}). "
                    f"{_size(partial)} of {artifact.size_bytes} bytes are kept; run the command again to go on."
                ) from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise NoSpaceError(
                    f"{artifact.name} needs {artifact.size_bytes:,} bytes and the disk of {path.parent} is full. "
                    "Free some space and run the command again; it goes on where it stopped."
                ) from error
            raise
    found = _sha256(partial)
    if found != artifact.sha256:
        partial.unlink()
        raise DigestMismatchError(artifact.name, expected=artifact.sha256, found=found)
    partial.replace(path)
    return received


def _continue(http: httpx.Client, artifact: Artifact, partial: Path, count: Callable[[int], None]) -> None:
    """Fetch what is missing in `partial`."""
    have = _size(partial)
    if have > artifact.size_bytes:
        partial.unlink()
        have = 0
    if have == artifact.size_bytes:
        return
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with http.stream("GET", f"/api/artifacts/{artifact.sha256}", headers=headers) as response:
        if response.status_code == 404:
            raise NotFoundError(
                f"The server no longer has {artifact.name} ({artifact.sha256}). Ask for the latest models again."
            )
        raise_for_problem(response)
        mode = "ab" if response.status_code == 206 else "wb"
        with partial.open(mode) as file:
            for chunk in response.iter_bytes():  # as they come: a cut loses nothing that arrived
                file.write(chunk)
                count(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if _size(partial) < artifact.size_bytes:  # the peer closed early without an error
        raise httpx.ReadError("the connection closed early")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
