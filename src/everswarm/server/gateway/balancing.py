"""Which of several endpoints for the same target is asked first: the fast, the idle, the one with quota left.

Power of two choices over a moving average of latency that jumps to a peak ("peak EWMA", as in Twitter's Finagle and in
Linkerd). It differs from theirs in one thing: an average does not fade while nobody calls. At some requests an hour all
averages would be near zero, and half of the requests would go to the slow endpoint. Instead one that was not measured
lately gets one request in ten of those that it would have lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

DECAY_SECONDS = 10.0  # a sample of so long ago weighs 1/e
PRIOR_SECONDS = 0.1  # before the first sample: small, so that the newcomer is measured
STALE_SECONDS = 30.0  # a measurement this old says little
LOOK_AGAIN_SHARE = 0.1  # of the requests that a stale endpoint would lose
LEAST_LEFT_SHARE = 0.05  # of a quota: below it, a cost does not rise further
USUAL_TOKENS = 64  # of an answer

C = TypeVar("C")


def comparable_seconds(latency_seconds: float, completion_tokens: int = 0) -> float:
    """Return a latency sample that does not punish an endpoint for being asked for long answers.

    A whole answer of n tokens: latency / (1 + n / 64), so that what comes before the first token counts as well, and
    an answer of one word does not look slow. A stream: its time to the first piece as it is, no tokens.

    Args:
        latency_seconds: of the whole answer, or to the first piece of a stream.
        completion_tokens: of the whole answer; 0 for a stream.
    """
    return latency_seconds / (1.0 + max(0, completion_tokens) / USUAL_TOKENS)


class Load:
    """What one endpoint does now: its latency and its calls in flight. For one event loop; not for threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latency_seconds: float | None = None
        self._measured_at = 0.0
        self._running = 0

    @property
    def running(self) -> int:
        """Calls in flight."""
        return self._running

    @property
    def latency_seconds(self) -> float | None:
        """Moving average of the samples; None before the first."""
        return self._latency_seconds

    @property
    def is_stale(self) -> bool:
        """Whether nobody calls it and the last sample, if any, is old."""
        if self._running:
            return False
        return self._latency_seconds is None or self._clock() - self._measured_at >= STALE_SECONDS

    def begin(self) -> None:
        """A call starts."""
        self._running += 1

    def end(self, latency_seconds: float | None) -> None:
        """A call that began is over.

        The average goes up to a slower sample at once, and down with time: w = exp(-seconds since the last / 10).

        Args:
            latency_seconds: from `comparable_seconds`; None where it failed or the reader left.

        Raises:
            ValueError: no call is in flight.
        """
        if not self._running:
            raise ValueError("end() without begin(): no call is in flight. Call begin() once before each end().")
        self._running -= 1
        if latency_seconds is None:
            return
        now = self._clock()
        before = self._latency_seconds
        if before is None or latency_seconds >= before:
            self._latency_seconds = latency_seconds
        else:
            kept = math.exp((self._measured_at - now) / DECAY_SECONDS)
            self._latency_seconds = before * kept + latency_seconds * (1.0 - kept)
        self._measured_at = now

    def cost(self, weight: float) -> float:
        """Return what one more call costs, to be compared: expected seconds in line, by `weight` (more than 0)."""
        latency = PRIOR_SECONDS if self._latency_seconds is None else self._latency_seconds
        return latency * (self._running + 1) / weight


def order(
    candidates: Sequence[C],
    *,
    cost: Callable[[C], float],
    left_share: Callable[[C], float],
    is_stale: Callable[[C], bool],
    random: Random,
) -> list[C]:
    """Return `candidates` in the order in which to ask them: the cheaper of two drawn, then the rest as declared.

    Args:
        candidates: endpoints of one target that are worth a try, in declared order.
        cost: `Load.cost` of each.
        left_share: of its quota, from 0 (spent) to 1 (all of it, or no quota); a small one makes it dearer.
        is_stale: `Load.is_stale` of each.
        random: draws.
    """
    if len(candidates) < 2:
        return list(candidates)
    first = int(random.random() * len(candidates))
    second = (first + 1 + int(random.random() * (len(candidates) - 1))) % len(candidates)

    def price(position: int) -> float:
        return cost(candidates[position]) / max(left_share(candidates[position]), LEAST_LEFT_SHARE)

    winner, loser = (first, second) if price(first) <= price(second) else (second, first)
    if is_stale(candidates[loser]) and random.random() < LOOK_AGAIN_SHARE:
        winner = loser
    return [candidates[winner], *candidates[:winner], *candidates[winner + 1 :]]
