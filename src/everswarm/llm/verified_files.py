"""Large files that are what they claim to be: hashed once, placed whole, safe with two processes at work.

Knows nothing of where a file comes from.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from everswarm.errors import DigestMismatchError, NoSpaceError

ABANDONED_SECONDS = 24 * 3600  # no fetch and no conversion takes a day
FULL_DISK = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, sha256: str) -> None:
    """Return if `path` has the digest `sha256`. Size and time of a verified file are kept beside it, to hash it once.

    Raises:
        DigestMismatchError: the file is another one.
    """
    stamp, mark = _stamp_of(path), _mark_of(path, sha256)
    with contextlib.suppress(OSError, ValueError):
        if json.loads(stamp.read_text(encoding="utf-8")) == mark:
            return
    found = sha256_of(path)
    if found != sha256:
        raise DigestMismatchError(f"{path} (remove it to have it fetched again)", expected=sha256, found=found)
    with contextlib.suppress(OSError):  # a folder that we may only read still holds a good file
        stamp.write_text(json.dumps(mark), encoding="utf-8")


def place(fetched: Path, target: Path, sha256: str) -> None:
    """Move a fetched file to `target` in one step, if its digest is right; both are on one file system.

    Raises:
        DigestMismatchError: the file is another one; nothing was moved.
    """
    found = sha256_of(fetched)
    if found != sha256:
        raise DigestMismatchError(fetched.name, expected=sha256, found=found)
    fetched.replace(target)
    _stamp_of(target).write_text(json.dumps(_mark_of(target, sha256)), encoding="utf-8")


@contextlib.contextmanager
def work_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `parent`, removed afterwards; a full disk is told as such.

    Raises:
        NoSpaceError: the disk is full.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".part-*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise no_space(parent) from error


def no_space(folder: Path) -> NoSpaceError:
    """Return the error of a full disk under `folder`."""
    return NoSpaceError(f"The disk that holds {folder} is full. Nothing was half-written; make room and try again.")


@contextlib.contextmanager
def exclusive(lock_path: Path) -> Iterator[None]:
    """Wait until no other process holds `lock_path`, then hold it; the system lets go if we die."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open("a+b") as stream:
        if sys.platform == "win32":
            import msvcrt

            while True:
                with contextlib.suppress(OSError):  # LK_LOCK gives up after ten seconds
                    msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _stamp_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _mark_of(path: Path, sha256: str) -> dict[str, object]:
    status = path.stat()
    return {"sha256": sha256, "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}
