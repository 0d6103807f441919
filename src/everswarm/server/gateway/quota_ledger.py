"""The account of one quota at one moment: what was used, what is held, what the endpoint said. Pure, no SQL.

A store loads it, lets it decide, and saves it, in one transaction; so there is one algorithm, whatever the store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from everswarm.schemas.gateway import LimitView, Priority
from everswarm.server.gateway.quota import CONFIGURATION, HEADERS, MICROSECONDS, Limit, Quota, QuotaState, Refusal, Unit
from everswarm.server.gateway.rate_headers import Correction
from everswarm.server.gateway.rolling_window import Series, advance, empty_series, microseconds_until, slot_of, used

LONGEST_CLOSURE_SECONDS = 32 * 86_400.0
FORMAT = 1  # of the saved state; another one is begun anew

log = logging.getLogger(__name__)


class Ledger:
    """The account of one key, at the moment of its loading. `changed` says whether it has to be saved."""

    __slots__ = ("_caps", "_closed", "_holds", "_learned", "_series", "changed", "now_us")

    def __init__(self, state: bytes | None, *, now_us: int, lease_us: int) -> None:
        """Load `state`; holds of owners that were silent for `lease_us` do not count.

        Raises:
            ValueError: `state` is not what `save` returned.
        """
        self.now_us = now_us
        self.changed = False
        self._series: dict[str, Series] = {}  # name of a limit → its use
        self._holds: dict[str, list[int]] = {}  # owner → tokens, requests, when it was last heard of
        self._caps: dict[str, list[Any]] = {}  # name → unit, left, kept for interactive use, until when
        self._learned: dict[str, int] = {}  # name of a limit → the amount that the endpoint told
        self._closed: list[Any] | None = None  # until when, and why
        if state is not None:
            self._load(orjson.loads(state), lease_us)

    def _load(self, state: Any, lease_us: int) -> None:
        if not isinstance(state, list) or len(state) != 6 or state[0] != FORMAT:
            raise ValueError("the state of a quota has another format")
        now_us = self.now_us
        _, self._series, holds, caps, self._learned, closed = state
        for owner, hold in holds.items():
            if hold[2] > now_us - lease_us:
                hold[2] = min(hold[2], now_us)  # a clock that went back must not keep the dead alive
                self._holds[owner] = hold
        self._caps = {name: cap for name, cap in caps.items() if cap[3] > now_us} if caps else caps
        self._closed = closed if closed and closed[0] > now_us else None

    def save(self) -> bytes:
        """Return the state, for the next to load."""
        return orjson.dumps([FORMAT, self._series, self._holds, self._caps, self._learned, self._closed])

    def hold(self, owner: str, *, tokens: int, requests: int) -> None:
        """Note all that `owner` holds now; whatever was noted before is replaced."""
        if requests:
            self._holds[owner] = [tokens, requests, self.now_us]
        else:
            self._holds.pop(owner, None)

    def book(self, quota: Quota, tokens: int) -> None:
        """Count one request that used `tokens`, as of now."""
        for limit in quota.limits:
            self._series_of(limit)[-1] += tokens if limit.unit == "tokens" else 1
        if len(self._series) > len(quota.limits):
            self._book_others(quota, tokens)
        for cap in self._caps.values():
            cap[1] -= tokens if cap[0] == "tokens" else 1
        self.changed = True

    def close(self, *, seconds: float, reason: str) -> None:
        """Grant nothing for `seconds`; a longer closure stays."""
        until_us = self.now_us + _microseconds(min(seconds, LONGEST_CLOSURE_SECONDS))
        if self._closed is None or self._closed[0] < until_us:
            self._closed = [until_us, reason]
            self.changed = True

    def refusal(self, quota: Quota, tokens: int, *, priority: Priority) -> Refusal | None:
        """Return why a request of `tokens` cannot be sent now; None if it can."""
        full = False
        held_tokens, held_requests = self._held()
        for limit in quota.limits:
            need, held = (tokens, held_tokens) if limit.unit == "tokens" else (1, held_requests)
            amount = self._amount(limit)
            allowed = quota.allowed(amount, priority)
            if need > allowed:
                return _never(limit, need=need, amount=amount, allowed=allowed)
            full = full or used(self._series_of(limit)) + held + need > allowed
        if self._closed is not None:
            return Refusal((self._closed[0] - self.now_us) / MICROSECONDS, self._closed[1], closed=True)
        if full or (self._caps and any(self._blocking_caps(tokens, 1, priority))):
            return self._wait(quota, tokens, priority=priority)
        return None

    def microseconds_until(self, quota: Quota, tokens: int, *, requests: int, priority: Priority) -> int:
        """Return when `tokens` in `requests` more would fit, if nothing is given back; 0 for at once."""
        waits = [0, self._closed[0] - self.now_us if self._closed else 0]
        held = self._held()
        for limit in quota.limits:
            need, on_hold = (tokens, held[0]) if limit.unit == "tokens" else (requests, held[1])
            waits.append(
                microseconds_until(
                    self._series_of(limit),
                    need=need,
                    held=on_hold,
                    allowed=quota.allowed(self._amount(limit), priority),
                    now_us=self.now_us,
                    window_us=limit.window_us,
                )
            )
        waits += [cap[3] - self.now_us for cap in self._blocking_caps(tokens, requests, priority)]
        return max(waits)

    def correct(self, quota: Quota, corrections: Sequence[Correction]) -> None:
        """Heed what the endpoint said: a new amount for a default limit, and how much it takes until its reset.

        What other calls hold now may be counted by the endpoint already, or not; it counts as not.
        """
        for correction in corrections:
            self._learn(quota, correction)
            unit, limit, window = correction.unit, correction.limit, correction.window_seconds
            name = f"{unit} {_microseconds(window or 0)}"
            if name in self._caps or correction.remaining < self._left_unheld(quota, unit):
                kept = int(quota.interactive_share * (correction.remaining if limit is None else limit))
                until_us = self.now_us + _microseconds(min(correction.reset_seconds, LONGEST_CLOSURE_SECONDS))
                self._caps[name] = [unit, correction.remaining, kept, until_us]
                self.changed = True

    def view(self, quota: Quota) -> QuotaState:
        """Return how much of each limit is used, held and left for interactive use."""
        held = dict(zip(("tokens", "requests"), self._held(), strict=True))
        limits = []
        for limit in quota.limits:
            amount, booked = self._amount(limit), used(self._series_of(limit))
            left = min([amount - booked, *(cap[1] for cap in self._caps.values() if cap[0] == limit.unit)])
            limits.append(
                LimitView(
                    unit=limit.unit,
                    window_seconds=limit.window_seconds,
                    amount=amount,
                    used=booked,
                    held=held[limit.unit],
                    left=max(0, left - held[limit.unit]),
                    source=HEADERS if self._is_learned(limit) else limit.source,
                )
            )
        until, reason = self._closed or (None, None)
        closed_until = None if until is None else datetime.fromtimestamp(until / MICROSECONDS, UTC)
        return QuotaState(tuple(limits), closed_until, reason)

    def _series_of(self, limit: Limit) -> Series:
        slot = slot_of(self.now_us, limit.window_us)
        series = self._series.get(limit.name)
        if series is None:
            series = self._series[limit.name] = empty_series(slot)
        elif series[0] != slot and advance(series, slot):
            self.changed = True
        return series

    def _book_others(self, quota: Quota, tokens: int) -> None:
        """Count it for limits too that only other processes have, as while an operator changes the configuration."""
        for name in self._series.keys() - {limit.name for limit in quota.limits}:
            unit, window_us = name.split(" ")
            advance(self._series[name], slot_of(self.now_us, int(window_us)))
            if any(self._series[name][1:]):
                self._series[name][-1] += tokens if unit == "tokens" else 1
            else:
                del self._series[name]  # nobody used it for a whole window

    def _held(self) -> tuple[int, int]:
        tokens = requests = 0
        for hold in self._holds.values():
            tokens += hold[0]
            requests += hold[1]
        return tokens, requests

    def _is_learned(self, limit: Limit) -> bool:
        return limit.source != CONFIGURATION and limit.name in self._learned

    def _amount(self, limit: Limit) -> int:
        return self._learned[limit.name] if self._is_learned(limit) else limit.amount

    def _left_unheld(self, quota: Quota, unit: Unit) -> float:
        left = [self._amount(limit) - used(self._series_of(limit)) for limit in quota.limits if limit.unit == unit]
        return min(left, default=math.inf)

    def _learn(self, quota: Quota, correction: Correction) -> None:
        if correction.limit is None or correction.window_seconds is None:
            return
        name = f"{correction.unit} {_microseconds(correction.window_seconds)}"
        for limit in quota.limits:
            if limit.name == name and limit.source != CONFIGURATION and self._amount(limit) != correction.limit:
                self._learned[name] = correction.limit
                self.changed = True

    def _blocking_caps(self, tokens: int, requests: int, priority: Priority) -> Iterator[list[Any]]:
        held = self._held()
        for cap in self._caps.values():
            need = tokens + held[0] if cap[0] == "tokens" else requests + held[1]
            if need > cap[1] - (0 if priority is Priority.INTERACTIVE else cap[2]):
                yield cap

    def _wait(self, quota: Quota, tokens: int, *, priority: Priority) -> Refusal:
        seconds = self.microseconds_until(quota, tokens, requests=1, priority=priority) / MICROSECONDS
        state = self.view(quota)
        spent = "; ".join(
            f"{limit.left} of {limit.amount} {limit.unit} in {limit.window_seconds:g} s are left"
            for limit in state.limits
        )
        kept = (
            ""
            if priority is Priority.INTERACTIVE
            else f", of which {quota.interactive_share:.0%} are kept for interactive use"
        )
        said = (
            " The endpoint itself says that it takes no more." if any(self._blocking_caps(tokens, 1, priority)) else ""
        )
        return Refusal(seconds, f"Asked for {tokens} tokens; {spent}{kept}.{said} It fits in {math.ceil(seconds)} s.")


def load_ledger(state: bytes | None, *, now_us: int, lease_us: int) -> Ledger:
    """Return the ledger of `state`; an empty one where there is none, or one of another format."""
    try:
        return Ledger(state, now_us=now_us, lease_us=lease_us)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        log.warning("The account of a quota could not be read and is begun anew: %s", error)
        return Ledger(None, now_us=now_us, lease_us=lease_us)


def _never(limit: Limit, *, need: int, amount: int, allowed: int) -> Refusal:
    kept = f", of which {amount - allowed} are kept for interactive use" if allowed < amount else ""
    return Refusal(
        limit.window_seconds,
        f"Asked for {need} {limit.unit}, and the endpoint's quota is {amount} in {limit.window_seconds:g} s{kept}: "
        "it can never fit. Send a shorter prompt or a smaller max_tokens, or raise the endpoint's quota.",
        never=True,
    )


def _microseconds(seconds: float) -> int:
    return round(seconds * MICROSECONDS)
