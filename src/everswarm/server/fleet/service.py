"""Enrolling devices, publishing releases, and telling devices what is new."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sqlalchemy import Connection

from everswarm.errors import ForbiddenError
from everswarm.identifiers import new_id
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.release import Release
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import Device, DeviceEnrolment, MobileModel
from everswarm.server.auth import Principal
from everswarm.server.auth.repository import live_keys_with_scope
from everswarm.server.database import Database, take_turns
from everswarm.server.fleet import repository
from everswarm.server.fleet.repository import Base

BASE_VERSION = "v0"  # the base alone, before the first release
OLDEST_CLIENT = "0.1.0"  # the first that understands these records
MEGABYTE_BYTES = 1_000_000
MOBILE_ROLES = {"primary": 0, "fast": 1, "ultralight": 2}  # in the order in which they are listed
MODEL_SLUGS = {
    "microsoft/Phi-3-mini-4k-instruct": "phi3_mini",
    "meta-llama/Llama-3.2-1B-Instruct": "llama32_1b",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tinyllama_1b",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2_135m",
}


def enrol_device(database: Database, principal: Principal, enrolment: DeviceEnrolment) -> Device:
    """Add a device, or update it when it is there. A device key stands for one device, and a device has one live key.

    Raises:
        ForbiddenError: the key is another device's, or the device has another key.
    """
    now = datetime.now(UTC)
    values = {"name": enrolment.name, "client_version": enrolment.client_version, "last_seen_at": now}
    with database.transaction() as connection:
        take_turns(connection, "devices")
        found = repository.find_device(connection, enrolment.device_id)
        key_id = None if found is None else found.key_id
        if principal.scope is not Scope.ADMIN:
            _check_key_is_free(connection, principal, enrolment.device_id)
            _check_device_is_free(connection, principal, enrolment.device_id, key_id=key_id)
            key_id = principal.key_id
        if found is None:
            row = {"device_id": enrolment.device_id, "enrolled_at": now, "key_id": key_id, **values}
            repository.insert_device(connection, row)
        else:
            repository.update_device(connection, enrolment.device_id, {"key_id": key_id, **values})
    return Device(
        device_id=enrolment.device_id,
        name=enrolment.name,
        client_version=enrolment.client_version,
        enrolled_at=now if found is None else found.enrolled_at,
        last_seen_at=now,
        release_id=None if found is None else found.release_id,
    )


def list_devices(database: Database) -> list[Device]:
    """Return every device, the one seen last first."""
    with database.read() as connection:
        return repository.all_devices(connection)


def publish_release(
    connection: Connection,
    *,
    role: str,
    student: str,
    base: Artifact,
    adapter: Artifact | None,
    quantization: str,
    cycle_id: str,
    dataset: str,
    evaluation: str,
    reason: str,
) -> Release:
    """Make what a cycle produced the latest release of `role`. Done twice for a cycle, the first stays."""
    take_turns(connection, "releases")
    existing = repository.release_of_cycle(connection, cycle_id)
    if existing is not None:
        return existing
    number = repository.next_number(connection, role)
    release = Release(
        id=new_id(),
        version=f"v1.{number}",
        role=role,
        student=student,
        base=base,
        adapter=adapter,
        quantization=quantization,
        cycle_id=cycle_id,
        dataset=dataset,
        evaluation=evaluation,
        reason=reason,
        oldest_client=OLDEST_CLIENT,
        created_at=datetime.now(UTC),
    )
    repository.insert_release(connection, release, number=number)
    return release


def latest_release(connection: Connection, role: str) -> Release | None:
    """Return what devices of `role` should run, if anything was released."""
    return repository.newest_release(connection, role)


def list_releases(database: Database, *, limit: int) -> list[Release]:
    """Return the newest releases, newest first."""
    with database.read() as connection:
        return repository.recent_releases(connection, limit)


def set_base(connection: Connection, *, role: str, student: str, base: Artifact, quantization: str) -> None:
    """Say which base model devices of `role` run until the first release."""
    take_turns(connection, "bases")
    repository.put_base(connection, Base(role=role, student=student, artifact=base, quantization=quantization))


def current_base(connection: Connection, role: str) -> Base | None:
    """Return the base that devices of `role` run: the latest release's, or else the one that was set."""
    release = repository.newest_release(connection, role)
    return repository.find_base(connection, role) if release is None else _base_of(release)


def mobile_models(
    database: Database, principal: Principal, *, device_id: str, server_url: str
) -> dict[str, MobileModel]:
    """Return what a device may run, by model, and note that it asked.

    Raises:
        ForbiddenError: a device key asks for another device.
    """
    with database.read() as connection:
        if principal.scope is Scope.DEVICE:
            _check_key_is_free(connection, principal, device_id)
        models = _models_by_slug(connection, server_url=server_url)
        device = repository.find_device(connection, device_id)
    if device is not None and _may_speak_for(principal, key_id=device.key_id):
        told = max(
            (model.release_id for model in models.values() if model.release_id), default=None
        )  # ids sort by time
        values = {"last_seen_at": datetime.now(UTC), "release_id": told}
        with database.transaction() as connection:
            repository.update_device(connection, device_id, values)
    return models


def _models_by_slug(connection: Connection, *, server_url: str) -> dict[str, MobileModel]:
    roles = {base.role for base in repository.all_bases(connection)} | repository.released_roles(connection)
    models: dict[str, MobileModel] = {}
    for role in sorted(roles, key=lambda role: (MOBILE_ROLES.get(role, len(MOBILE_ROLES)), role)):
        base = current_base(connection, role)
        if base is not None:
            slug = model_slug(base.student)
            key = slug if slug not in models else f"{slug}_{role}"  # two roles may share a model
            models[key] = _mobile_model(base, latest_release(connection, role), server_url=server_url)
    return models


def model_slug(model: str) -> str:
    """Return the short name of a model, such as phi3_mini; for one that is not in the table, its name in snake case."""
    return MODEL_SLUGS.get(model) or re.sub(r"[^a-z0-9]+", "_", model.rsplit("/", 1)[-1].lower()).strip("_")


def _mobile_model(base: Base, release: Release | None, *, server_url: str) -> MobileModel:
    adapter = None if release is None else release.adapter
    return MobileModel(
        version=BASE_VERSION if release is None else release.version,
        url=_artifact_url(server_url, base.artifact),
        size_mb=round(base.artifact.size_bytes / MEGABYTE_BYTES, 1),
        quantization=base.quantization.lower(),
        sha256=base.artifact.sha256,
        role=base.role,
        model=base.student,
        release_id=None if release is None else release.id,
        base=base.artifact,
        adapter=adapter,
        adapter_url=None if adapter is None else _artifact_url(server_url, adapter),
        signed=False if release is None else release.signed,
    )


def _base_of(release: Release) -> Base:
    return Base(role=release.role, student=release.student, artifact=release.base, quantization=release.quantization)


def _artifact_url(server_url: str, artifact: Artifact) -> str:
    return f"{server_url.rstrip('/')}/api/artifacts/{artifact.sha256}"


def _check_key_is_free(connection: Connection, principal: Principal, device_id: str) -> None:
    bound = repository.device_of_key(connection, principal.key_id)
    if bound is not None and bound != device_id:
        raise ForbiddenError(
            f"The key {principal.label!r} belongs to the device {bound!r} and cannot be used as {device_id!r}. "
            "Each device needs a key of its own: everswarm keys create --scope device."
        )


def _check_device_is_free(connection: Connection, principal: Principal, device_id: str, *, key_id: str | None) -> None:
    if key_id is not None and key_id != principal.key_id and key_id in live_keys_with_scope(connection, Scope.DEVICE):
        raise ForbiddenError(
            f"The device {device_id!r} enrolled with another key than {principal.label!r}. Use that key, or revoke it "
            "first (everswarm keys revoke), or enrol under another device id."
        )


def _may_speak_for(principal: Principal, *, key_id: str | None) -> bool:
    return principal.scope is Scope.ADMIN or principal.key_id == key_id
