"""Log-probabilities as servers tell them: rounded, and only of the likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable

ROUNDING = 1e-3  # by which rounding may lift a log-probability above 0
FLOOR = math.log(1e-7)  # of what is left: less than that is lost to rounding on the way


def logprob_told(value: object) -> float:
    """Return a log-probability; one that rounding lifted above 0 is 0.

    Raises:
        ValueError: it is no number; also TypeError.
    """
    logprob = float(value)  # type: ignore[arg-type]  # the caller hears of what is no number
    return 0.0 if 0.0 < logprob <= ROUNDING else logprob


def left_over(logprobs: Iterable[float]) -> float:
    """Return the log of the probability that these candidates leave to all others, at least `FLOOR`."""
    rest = 1.0 - math.fsum(math.exp(min(logprob, 1.0)) for logprob in logprobs)  # nonsense is refused later
    return math.log(rest) if rest > math.exp(FLOOR) else FLOOR
