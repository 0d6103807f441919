"""Enrol once; then, whenever there is a line: fetch the latest release, send the judgements.

What is in use changes only after every new file is on disk and has its digest, so a broken sync costs nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from everswarm import __version__
from everswarm.client.api import EverswarmClient
from everswarm.device import outbox
from everswarm.device.journal import now, only_one
from everswarm.device.state import DEFAULT_ROLE, DeviceHome, DeviceState, Installed, no_space_in_words
from everswarm.device.trust import refuse_remote
from everswarm.errors import EverswarmError, NoSpaceError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.sync import DeviceEnrolment, MobileModel

SPARE_BYTES = 64 * 1024 * 1024  # left free for the journal and for the rest of the machine

OnBytes = Callable[[Artifact, int], None]  # which file, how many bytes more


@dataclass(frozen=True)
class SyncReport:
    """What one sync did. Sizes are those of the files in use; `downloaded_bytes` crossed the wire this time."""

    release: str | None  # id of the release in use
    version: str | None
    model: str | None
    changed: bool  # another release than before is in use
    base_bytes: int
    adapter_bytes: int
    base_downloaded_bytes: int
    adapter_downloaded_bytes: int
    feedback_sent: int
    feedback_rejected: int
    seconds: float
    note: str = ""

    @property
    def downloaded_bytes(self) -> int:
        """Base and adapter together."""
        return self.base_downloaded_bytes + self.adapter_downloaded_bytes


@dataclass(frozen=True)
class _Fetched:
    """The model part of a sync."""

    base_bytes: int = 0
    adapter_bytes: int = 0
    changed: bool = False
    note: str = ""


def enroll(home: Path, server: str, *, key: str, name: str, role: str = DEFAULT_ROLE) -> DeviceState:
    """Make `home` a device of `server`. Again on the same home: the device keeps its id, its models and its journal.

    Raises:
        ForbiddenError: the server is not on this machine.
        UnavailableError: the server does not answer; nothing was written.
    """
    refuse_remote(server)
    place = DeviceHome(home.expanduser())
    earlier = place.load() if place.state_path.exists() else None
    device_id = earlier.device_id if earlier else new_id()
    with EverswarmClient(server, key) as client:
        client.enroll_device(DeviceEnrolment(device_id=device_id, name=name, client_version=__version__))
    state = DeviceState(device_id=device_id, name=name, server=server.rstrip("/"), role=role)
    if earlier:
        state = earlier.model_copy(update={"name": name, "server": state.server, "role": role})
    with no_space_in_words(home):
        place.create()
    place.save_key(key)
    place.save(state)
    return state


def sync(home: Path, *, on_bytes: OnBytes | None = None) -> SyncReport:
    """Fetch the latest release and send the queued judgements.

    Raises:
        UnavailableError: the server is gone; everything on the device still works.
        DigestMismatchError: a file was not the promised one; the release in use stays.
        NoSpaceError: the new files do not fit; the release in use stays.
        ForbiddenError: the server is not on this machine, or the key is not allowed to sync.
        ConflictError: another sync is running.
    """
    started = time.monotonic()
    place = DeviceHome(home.expanduser())
    state = place.load()
    refuse_remote(state.server)
    with only_one(place.path / "sync.lock", "sync"), EverswarmClient(state.server, place.load_key()) as client:
        try:
            offered = client.mobile_latest(state.device_id)
            problem, fetched = None, _Fetched()
            try:
                fetched = _update(place, state, client, offered, on_bytes)
            except UnavailableError:
                raise
            except EverswarmError as error:  # the judgements go out all the same
                problem = error
            feedback = outbox.send(place.journal_path, state.device_id, client=client)
        except UnavailableError as error:
            raise _still_works(place, state, error) from error
        if problem:
            raise problem
        state = place.load().model_copy(update={"synced_at": now()})
        place.save(state)
    used = state.current
    return SyncReport(
        release=used.release_id if used else None,
        version=used.version if used else None,
        model=used.model if used else None,
        changed=fetched.changed,
        base_bytes=used.base.size_bytes if used else 0,
        adapter_bytes=used.adapter.size_bytes if used and used.adapter else 0,
        base_downloaded_bytes=fetched.base_bytes,
        adapter_downloaded_bytes=fetched.adapter_bytes,
        feedback_sent=feedback.sent,
        feedback_rejected=feedback.rejected,
        seconds=round(time.monotonic() - started, 3),
        note=fetched.note,
    )


def _still_works(place: DeviceHome, state: DeviceState, error: UnavailableError) -> UnavailableError:
    waiting = outbox.count(place.journal_path).queued
    chat = "It can still answer" if state.current else "It has no model yet"
    return UnavailableError(
        f"{error} This device is unchanged. {chat}; {waiting} judgements wait for the next sync.",
        retry_after_seconds=error.retry_after_seconds or 5,
    )


def _update(
    place: DeviceHome,
    state: DeviceState,
    client: EverswarmClient,
    offered: dict[str, MobileModel],
    on_bytes: OnBytes | None,
) -> _Fetched:
    """Bring what is offered for our role into use."""
    model = next((model for model in offered.values() if model.role == state.role), None)
    if model is None:
        roles = ", ".join(sorted({entry.role for entry in offered.values()})) or "none"
        return _Fetched(
            note=f"The server offers nothing for the role '{state.role}' yet (roles offered: {roles}). "
            "A cycle makes the first release; everswarm models quantize, on the server's machine, offers the base."
        )
    offer = Installed(**model.model_dump(include=set(Installed.model_fields)))
    _refuse_full_disk(place, offer)
    received = {
        artifact.sha256: client.fetch_artifact(
            artifact,
            place.model_path(artifact),
            on_bytes=partial(on_bytes, artifact) if on_bytes else None,
        )
        for artifact in offer.artifacts
    }
    changed = offer != state.current
    if changed:
        previous = state.current if state.current and state.current.artifacts != offer.artifacts else state.previous
        place.save(state.model_copy(update={"current": offer, "previous": previous}))
    _forget_unused(place)
    adapter_bytes = received[offer.adapter.sha256] if offer.adapter else 0
    return _Fetched(base_bytes=received[offer.base.sha256], adapter_bytes=adapter_bytes, changed=changed)


def _refuse_full_disk(place: DeviceHome, offer: Installed) -> None:
    """Say so before the download starts, not at its end."""
    missing_bytes = 0
    for artifact in offer.artifacts:
        path = place.model_path(artifact)
        partial = path.with_name(path.name + ".part")
        if not path.exists():
            missing_bytes += max(0, artifact.size_bytes - (partial.stat().st_size if partial.exists() else 0))
    free_bytes = shutil.disk_usage(place.path).free
    if missing_bytes and missing_bytes + SPARE_BYTES > free_bytes:
        raise NoSpaceError(
            f"{offer.model} {offer.version} needs {missing_bytes / 1e6:,.1f} MB and {SPARE_BYTES / 1e6:.0f} MB "
            f"to spare; the disk of {place.path} has {free_bytes / 1e6:,.1f} MB free. The release in use stays. "
            "Free some space and sync again."
        )


def _forget_unused(place: DeviceHome) -> None:
    """Delete the files of releases older than the previous one, and downloads that nobody will finish."""
    state = place.load()
    used = {
        place.model_path(artifact) for part in (state.current, state.previous) if part for artifact in part.artifacts
    }
    for path in place.models_dir.iterdir():
        if path not in used:
            with suppress(PermissionError):  # Windows keeps a file that a chat has open; the next sync tries again
                path.unlink()
