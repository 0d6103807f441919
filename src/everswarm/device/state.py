"""The device's home: who it is, which server it belongs to, what is installed. One folder, for its owner only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from everswarm.errors import ConfigurationError, NoSpaceError
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Identifier, Record, Timestamp

MOBILE_ROLES = ("primary", "fast", "ultralight")
DEFAULT_ROLE = "ultralight"


class Installed(Record):
    """A model that is wholly on this device: every file was checked against its digest."""

    release_id: str | None
    version: str
    role: str
    model: str
    quantization: str
    base: Artifact
    adapter: Artifact | None

    @property
    def artifacts(self) -> list[Artifact]:
        """Its files."""
        return [self.base, self.adapter] if self.adapter else [self.base]


class DeviceState(Record):
    """`device.json`. The key is not in it; that has a file of its own."""

    schema_version: Literal[1] = 1
    device_id: Identifier
    name: str
    server: str
    role: str = DEFAULT_ROLE
    current: Installed | None = None
    previous: Installed | None = None  # kept on disk, so that going back needs no line
    synced_at: Timestamp | None = None


def default_home() -> Path:
    """Return EVERSWARM_DEVICE_HOME, or `~/.everswarm-device`."""
    return Path(os.environ.get("EVERSWARM_DEVICE_HOME") or Path.home() / ".everswarm-device")


@dataclass(frozen=True)
class DeviceHome:
    """Where everything of one device lies."""

    path: Path

    @property
    def state_path(self) -> Path:
        """Who this device is and what is installed."""
        return self.path / "device.json"

    @property
    def key_path(self) -> Path:
        """The key to the server; readable by its owner only."""
        return self.path / "key"

    @property
    def journal_path(self) -> Path:
        """Interactions and queued feedback."""
        return self.path / "journal.sqlite"

    @property
    def models_dir(self) -> Path:
        """Bases and adapters, named by their digests."""
        return self.path / "models"

    @property
    def engine_log_path(self) -> Path:
        """What the engine said the last time it ran."""
        return self.path / "engine.log"

    def model_path(self, artifact: Artifact) -> Path:
        """Where `artifact` lies, or will."""
        return self.models_dir / f"{artifact.sha256}.gguf"

    def create(self) -> None:
        """Make the folder, or close an open one to everybody else."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        self.models_dir.mkdir(exist_ok=True)

    def load(self) -> DeviceState:
        """Read the state.

        Raises:
            ConfigurationError: the device was never enrolled, or `device.json` cannot be read.
        """
        try:
            return DeviceState.model_validate_json(self.state_path.read_bytes())
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"No device is enrolled in {self.path}. Enroll it with: everswarm device enroll http://127.0.0.1:8000"
            ) from error
        except (ValidationError, OSError) as error:
            raise ConfigurationError(
                f"{self.state_path} cannot be read: {error}. Mend it, or delete it and enroll again; "
                "the answers and the ratings of this device are in another file and stay."
            ) from error

    def save(self, state: DeviceState) -> None:
        """Replace the state in one step."""
        _write_private(self.state_path, state.model_dump_json(indent=2) + "\n")

    def load_key(self) -> str:
        """Read the key to the server.

        Raises:
            ConfigurationError: there is none.
        """
        try:
            return self.key_path.read_text().strip()
        except OSError as error:
            raise ConfigurationError(
                f"The key of this device cannot be read from {self.key_path} ({error.strerror}). "
                "Make one with 'everswarm keys create --scope device' on the server and enroll again."
            ) from error

    def save_key(self, key: str) -> None:
        """Replace the key in one step."""
        _write_private(self.key_path, key + "\n")


def _write_private(path: Path, text: str) -> None:
    """Write `text` so that nobody else can read it at any moment, and a crash leaves the old file or the new one."""
    fresh = path.with_name(path.name + ".new")
    with no_space_in_words(path.parent):
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


@contextmanager
def no_space_in_words(folder: Path) -> Iterator[None]:
    """Turn the system's 'no space left' into ours."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NoSpaceError(
            f"The disk of {folder} is full; nothing was changed. Free some space and run the command again."
        ) from error
