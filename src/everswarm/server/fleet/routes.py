"""`/api/devices`, `/api/releases` and `/api/models/mobile/latest`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from everswarm.schemas.base import Identifier
from everswarm.schemas.release import Release
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import Device, DeviceEnrolment, MobileModel
from everswarm.server.auth import Principal, PrincipalDep, require
from everswarm.server.database import DatabaseDep
from everswarm.server.fleet import service

router = APIRouter(prefix="/api", tags=["fleet"])

DeviceKey = Annotated[Principal, Depends(require(Scope.DEVICE))]


@router.post("/devices")
def enrol_device(database: DatabaseDep, principal: DeviceKey, enrolment: DeviceEnrolment) -> Device:
    """Enrol this device, or update its name and version."""
    return service.enrol_device(database, principal, enrolment)


@router.get("/devices", dependencies=[Depends(require(Scope.ADMIN))])
def list_devices(database: DatabaseDep) -> list[Device]:
    """All devices, the one seen last first."""
    return service.list_devices(database)


@router.get("/releases")
def list_releases(
    database: DatabaseDep, principal: PrincipalDep, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> list[Release]:
    """The newest releases, newest first."""
    return service.list_releases(database, limit=limit)


@router.get("/models/mobile/latest")
def latest_mobile_models(
    database: DatabaseDep, principal: PrincipalDep, request: Request, device_id: Identifier
) -> dict[str, MobileModel]:
    """What this device should run, by model: the base to fetch once, and the adapter that goes on it."""
    return service.mobile_models(database, principal, device_id=device_id, server_url=str(request.base_url))
