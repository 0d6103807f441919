"""The statements about devices, releases and bases. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.release import Release
from everswarm.schemas.sync import Device
from everswarm.server.fleet.tables import bases, devices, releases


class Base(NamedTuple):
    """The base model that devices of one role run."""

    role: str
    student: str
    artifact: Artifact
    quantization: str


def find_device(connection: Connection, device_id: str) -> Row[Any] | None:
    """Return the row of one device."""
    return connection.execute(select(devices).where(devices.c.device_id == device_id)).one_or_none()


def device_of_key(connection: Connection, key_id: str) -> str | None:
    """Return the device that enrolled with this key."""
    return connection.execute(select(devices.c.device_id).where(devices.c.key_id == key_id)).scalars().first()


def insert_device(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add a device."""
    connection.execute(insert(devices), dict(row))


def update_device(connection: Connection, device_id: str, values: Mapping[str, Any]) -> None:
    """Change a device."""
    connection.execute(update(devices).where(devices.c.device_id == device_id).values(**values))


def all_devices(connection: Connection) -> list[Device]:
    """Return every device, the one seen last first."""
    columns = [devices.c[name] for name in Device.model_fields]
    rows = connection.execute(select(*columns).order_by(devices.c.last_seen_at.desc(), devices.c.device_id))
    return [Device(**row._mapping) for row in rows]


def insert_release(connection: Connection, release: Release, *, number: int) -> None:
    """Add a release."""
    row = release.model_dump(exclude={"schema_version", "signed"})
    row["base"] = release.base.model_dump(mode="json")
    row["adapter"] = release.adapter and release.adapter.model_dump(mode="json")
    connection.execute(insert(releases), {**row, "number": number})


def release_of_cycle(connection: Connection, cycle_id: str) -> Release | None:
    """Return the release that came out of a cycle."""
    row = connection.execute(select(releases).where(releases.c.cycle_id == cycle_id)).one_or_none()
    return None if row is None else _release(row)


def newest_release(connection: Connection, role: str) -> Release | None:
    """Return the latest release of a role."""
    wanted = select(releases).where(releases.c.role == role).order_by(releases.c.number.desc()).limit(1)
    row = connection.execute(wanted).one_or_none()
    return None if row is None else _release(row)


def next_number(connection: Connection, role: str) -> int:
    """Return how the next release of a role is counted, from 0."""
    highest = connection.execute(select(func.max(releases.c.number)).where(releases.c.role == role)).scalar()
    return 0 if highest is None else int(highest) + 1


def recent_releases(connection: Connection, limit: int) -> list[Release]:
    """Return the newest releases, newest first."""
    wanted = select(releases).order_by(releases.c.created_at.desc(), releases.c.id.desc()).limit(limit)
    return [_release(row) for row in connection.execute(wanted)]


def released_roles(connection: Connection) -> set[str]:
    """Return the roles that have releases."""
    return set(connection.execute(select(releases.c.role).distinct()).scalars())


def put_base(connection: Connection, base: Base) -> None:
    """Set the base of its role."""
    connection.execute(delete(bases).where(bases.c.role == base.role))
    row = {**base._asdict(), "artifact": base.artifact.model_dump(mode="json")}
    connection.execute(insert(bases), row)


def find_base(connection: Connection, role: str) -> Base | None:
    """Return the base of a role."""
    row = connection.execute(select(bases).where(bases.c.role == role)).one_or_none()
    return None if row is None else _base(row)


def all_bases(connection: Connection) -> list[Base]:
    """Return the bases of all roles."""
    return [_base(row) for row in connection.execute(select(bases).order_by(bases.c.role))]


def count_fleet(connection: Connection) -> tuple[int, int]:
    """Return how many devices and how many releases there are."""
    counts = select(
        select(func.count()).select_from(devices).scalar_subquery(),
        select(func.count()).select_from(releases).scalar_subquery(),
    )
    row = connection.execute(counts).one()
    return int(row[0]), int(row[1])


def _release(row: Row[Any]) -> Release:
    columns = {name: row._mapping[name] for name in Release.model_fields if name in row._mapping}
    return Release.model_validate(columns)


def _base(row: Row[Any]) -> Base:
    return Base(
        role=row.role,
        student=row.student,
        artifact=Artifact.model_validate(row.artifact),
        quantization=row.quantization,
    )
