"""`/api/keys`: for admins."""

from __future__ import annotations

from fastapi import APIRouter, Depends, status

from everswarm.schemas.server import KeyCreate, KeyCreated, KeyView, Scope
from everswarm.server.auth import service
from everswarm.server.auth.guard import require
from everswarm.server.database import DatabaseDep

router = APIRouter(prefix="/api/keys", tags=["keys"], dependencies=[Depends(require(Scope.ADMIN))])


@router.post("", status_code=status.HTTP_201_CREATED)
def create_key(database: DatabaseDep, wanted: KeyCreate) -> KeyCreated:
    """Make a key. Its text is shown this once."""
    return service.create_key(database, scope=wanted.scope, label=wanted.label)


@router.get("")
def list_keys(database: DatabaseDep) -> list[KeyView]:
    """All keys, without their secrets."""
    return service.list_keys(database)


@router.delete("/{key_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke_key(database: DatabaseDep, key_id: str) -> None:
    """Refuse this key from now on."""
    service.revoke_key(database, key_id)
