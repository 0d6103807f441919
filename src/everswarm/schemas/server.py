"""Health, problems, keys and models: what the server says of itself."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from everswarm.schemas.base import Record, Timestamp


class Scope(StrEnum):
    """What a key may do. `admin` may do everything."""

    ADMIN = "admin"
    USER = "user"
    DEVICE = "device"
    WORKER = "worker"


class Problem(Record):
    """RFC 9457 problem details: what was asked, what the limit is, what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, object]] | None = None


class Health(Record):
    """`GET /api/health`. The first two fields are those of the plan; degraded states are named."""

    status: Literal["healthy", "degraded"]
    models: Literal["operational", "starting", "unavailable"]
    cycles: Literal["ready", "starting", "failed"]
    version: str
    endpoints: dict[str, str]  # endpoint name → operational, starting, or what is wrong
    problems: list[str]
    tool_servers: dict[str, str] = Field(
        default_factory=dict
    )  # name → operational, starting…, or what is wrong: in full for those who have a key


class KeyCreate(Record):
    """`POST /api/keys`."""

    scope: Scope
    label: str


class KeyCreated(Record):
    """A new key. `key` is shown this once and only its hash is kept."""

    id: str
    key: str
    scope: Scope
    label: str


class KeyView(Record):
    """A key without its secret."""

    id: str
    prefix: str
    scope: Scope
    label: str
    created_at: Timestamp
    revoked_at: Timestamp | None
