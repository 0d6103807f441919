"""What a quota is: limits that all hold at once, and the words in which a store grants or refuses. Pure records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from everswarm.schemas.gateway import LimitView, Priority

Unit = Literal["tokens", "requests"]

CONFIGURATION = "configuration"  # the source of a limit that the operator set; nothing corrects it
HEADERS = "the endpoint's headers"  # the source of a limit that the endpoint told us itself
MICROSECONDS = 1_000_000  # moments are whole microseconds inside, so that the arithmetic is exact


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `amount` of `unit` in any interval of `window_seconds`."""

    unit: Unit
    amount: int
    window_seconds: float
    source: str = CONFIGURATION
    window_us: int = field(init=False, repr=False, compare=False)
    name: str = field(init=False, repr=False, compare=False)  # of the series of its use in the ledger

    def __post_init__(self) -> None:
        """Work out once what every reservation needs.

        Raises:
            ValueError: the amount or the window is not positive.
        """
        window_us = round(self.window_seconds * MICROSECONDS)
        if self.amount < 1 or window_us < 1:
            raise ValueError(
                f"A limit of {self.amount} {self.unit} in {self.window_seconds} s holds nothing. Both must be positive."
            )
        object.__setattr__(self, "window_us", window_us)
        object.__setattr__(self, "name", f"{self.unit} {window_us}")


@dataclass(frozen=True, slots=True)
class Quota:
    """All limits of one endpoint and credential. `key` tells them from others, in all processes."""

    key: str
    limits: tuple[Limit, ...]
    interactive_share: float = 0.2  # of each limit; devices and batches leave it alone

    def allowed(self, amount: int, priority: Priority) -> int:
        """Return how much of `amount` a request of `priority` may find used, itself included; at least 1."""
        if priority is Priority.INTERACTIVE:
            return amount
        return max(1, int(amount * (1 - self.interactive_share) + 1e-9))

    def may_ever_hold(self, tokens: int, priority: Priority) -> bool:
        """Say whether a request of so many tokens fits into every limit while nothing else is used."""
        return all(tokens <= self.allowed(limit.amount, priority) for limit in self.limits if limit.unit == "tokens")


@dataclass(frozen=True, slots=True)
class Reservation:
    """The right to send one request that costs up to `tokens`. Settle or cancel it."""

    id: str
    key: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was reserved, and when it would fit if nothing is given back before."""

    retry_after_seconds: float
    reason: str
    closed: bool = False  # the endpoint itself said so (402, 429), for all requests
    never: bool = False  # larger than a limit ever holds: waiting does not help


@dataclass(frozen=True, slots=True)
class QuotaState:
    """How much of a quota is used now, by all processes."""

    limits: tuple[LimitView, ...]
    closed_until: datetime | None
    closed_reason: str | None
