"""How long to pause before a call is tried again. Pure."""

from __future__ import annotations

from random import Random

BASE_SECONDS = 0.25
CAP_SECONDS = 8.0
_ATTEMPTS_TO_CAP = 32  # more doublings change nothing, and would overflow


def pause_seconds(attempt: int, *, retry_after_seconds: float | None, random: Random) -> float:
    """Return the pause before the next try, by full jitter: anywhere between nothing and a bound that doubles.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015). Where the endpoint named a moment, the
    jitter comes on top of it: never sooner, and not everyone at that same moment.

    Args:
        attempt: 0 after the first failure, 1 after the second, and so on.
        retry_after_seconds: what the endpoint's Retry-After said; None where it said nothing.
        random: draws the jitter.
    """
    bound = min(CAP_SECONDS, BASE_SECONDS * 2.0 ** min(attempt, _ATTEMPTS_TO_CAP))
    return max(0.0, retry_after_seconds or 0.0) + random.uniform(0.0, bound)
