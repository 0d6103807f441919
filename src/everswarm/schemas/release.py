"""A statement that devices may trust: this base, this adapter, these digests."""

from __future__ import annotations

from typing import Literal

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256, Timestamp


class Release(Record):
    """What a device of `role` should run. Not signed yet, so devices take it from loopback only."""

    schema_version: Literal[1] = 1
    id: str
    version: str  # v1.0, v1.1, …
    role: str  # mobile role: primary, fast, ultralight
    student: str
    base: Artifact
    adapter: Artifact | None
    quantization: str
    cycle_id: str
    dataset: Sha256
    evaluation: Sha256
    reason: str
    oldest_client: str
    created_at: Timestamp
    signed: Literal[False] = False
