"""The folder that holds all state: private to its owner, and used by one server at a time."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import TracebackType

from everswarm.errors import ConfigurationError

LOCK_NAME = "server.lock"
_LOCKED_BYTE = 1 << 20  # far behind the text: Windows forbids others to read what is locked


class HomeLock:
    """The right to serve one home, held as a context. The kernel gives it back however the process ends."""

    def __init__(self, home: Path, *, address: str) -> None:
        """`address` is where this server answers, for the message that a second one gets."""
        self._home = home
        self._address = address
        self._descriptor: int | None = None

    def __enter__(self) -> HomeLock:
        """Take the home; make it when it is not there.

        Raises:
            ConfigurationError: another server has it, and which; or the home cannot be written to.
        """
        prepare_home(self._home)
        path = self._home / LOCK_NAME
        create_private_file(path)
        descriptor = os.open(path, os.O_RDWR)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise ConfigurationError(
                f"The home {self._home} is in use by {_holder(path)}. Stop that server first, or give this one a home "
                "of its own with EVERSWARM_HOME."
            ) from error
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "address": self._address}).encode())
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the home back."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def prepare_home(home: Path) -> None:
    """Make `home`, for its owner only. A folder that held other things before keeps its mode.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(home.iterdir()):
            home.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"The home {home} cannot be used: {error.strerror}. "
            "Set EVERSWARM_HOME to a folder that this user may write to."
        ) from error


def create_private_file(path: Path) -> None:
    """Make sure that `path` exists and only its owner may read it.

    Raises:
        ConfigurationError: it cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be opened: {error.strerror}. "
            "Set EVERSWARM_HOME (or EVERSWARM_DATABASE_URL) to a place that this user may write to."
        ) from error


def _holder(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"the server at {found['address']} (process {found['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another server"  # one that is just starting or stopping


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
