"""The order in which requests are served, and what the gateway says of its endpoints and their quotas."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from everswarm.schemas.base import Record, Timestamp


class Priority(StrEnum):
    """Who goes first when a quota is short. `interactive`: a person waits for it."""

    INTERACTIVE = "interactive"
    DEVICE = "device"
    BATCH = "batch"


class LimitView(Record):
    """One limit of an endpoint, and how much of it is used in the window that ends now."""

    unit: Literal["tokens", "requests"]
    window_seconds: float
    amount: int
    used: int  # settled
    held: int  # reserved by calls that run
    left: int
    source: str  # configuration, the endpoint's own headers, or the dated table


class QuotaView(Record):
    """`GET /api/quotas`: one endpoint."""

    endpoint: str
    model: str
    roles: list[str]
    state: str  # operational, starting…, or what is wrong
    limits: list[LimitView]
    closed_until: Timestamp | None  # the endpoint said so (402, 429)
    closed_reason: str | None
    latency_seconds: float | None  # moving average of its answers
    running: int  # calls in flight, of this process
