"""What phones exchange with the server, in the shapes of the project's plan, section 5."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Identifier, Record, Sha256, Timestamp

MAX_INTERACTIONS_A_BATCH = 500


class TrainingFeedback(Record):
    """`POST /api/training/feedback`. The items are validated one by one, so that a bad one does not sink the rest."""

    device_id: Identifier
    interactions: list[dict[str, Any]] = Field(max_length=MAX_INTERACTIONS_A_BATCH)
    timestamp: Timestamp


class RejectedInteraction(Record):
    """Why one item of a batch was not stored."""

    index: int
    id: str | None
    error: str


class TrainingFeedbackAccepted(Record):
    """Answer to `POST /api/training/feedback`. The same batch again gives the same `data_id`."""

    status: Literal["accepted"] = "accepted"
    data_id: str
    stored: int
    duplicates: int  # known already, and the same
    conflicts: list[RejectedInteraction] = Field(default_factory=list)  # known with another content, which is kept
    rejected: list[RejectedInteraction] = Field(default_factory=list)


class MobileModel(Record):
    """One entry of `GET /api/models/mobile/latest`: the plan's four fields, then what a careful device needs."""

    version: str
    url: str  # of the base model, GGUF
    size_mb: float
    quantization: str
    sha256: Sha256
    role: str
    model: str
    release_id: str | None
    base: Artifact
    adapter: Artifact | None
    adapter_url: str | None
    signed: bool = False


class DeviceEnrolment(Record):
    """`POST /api/devices`: a device names itself. The same id again updates the row."""

    device_id: Identifier
    name: str = Field(min_length=1, max_length=100)
    client_version: str = Field(max_length=50)


class Device(Record):
    """A device as the server knows it."""

    device_id: str
    name: str
    client_version: str
    enrolled_at: Timestamp
    last_seen_at: Timestamp
    release_id: str | None = None
