"""Keeps requests away from an endpoint that fails, and lets one at a time find out whether it is back.

Knows nothing of HTTP: the caller says what a failure is. A spent quota (402, 429) and a refused payload (4xx) are none.
For one event loop; not for threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Literal

FAILURES_IN_A_ROW = 3
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0  # a probe an hour finds out about a Retry-After that was a mistake
_DOUBLINGS = 6  # 1 s to 64 s, which is over the longest

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed while calls succeed; open for a pause after failures; then half-open, for one probe at a time.

    Each `may_try()` that grants is followed by one of `succeeded`, `failed` or `released`, best in a `finally`:
    a probe that never ends keeps the endpoint waiting.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES_IN_A_ROW,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
    ) -> None:
        """Begin closed.

        Args:
            failures: so many in a row open it.
            clock: seconds that never go back.
            random: draws the jitter of the pauses.
        """
        self._failures_to_open = failures
        self._clock = clock
        self._random = random or Random()
        self._failures = 0  # in a row, while closed
        self._pauses = 0  # in a row; 0 is closed
        self._open_until = 0.0  # on the clock
        self._probing = False

    @property
    def state(self) -> State:
        """`closed`; `open` during a pause; `half-open` after it, until a probe has succeeded."""
        if not self._pauses:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def seconds_until_probe(self) -> float:
        """How much of the pause is left; 0 where there is none."""
        return max(0.0, self._open_until - self._clock()) if self._pauses else 0.0

    def may_try(self) -> bool:
        """Return whether a call may be made now; in half-open state this takes the place of the one probe."""
        if not self._pauses:
            return True
        if self._probing or self._clock() < self._open_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The endpoint answered, be it a call from before the pause: close, and forget the pauses."""
        self._failures = self._pauses = 0
        self._probing = False

    def failed(self, *, at_once: bool = False, retry_after_seconds: float | None = None) -> None:
        """The endpoint did not answer.

        Args:
            at_once: open without waiting for more failures: nobody listens there.
            retry_after_seconds: when the endpoint wants to be asked again; opens for at least so long.
        """
        asked_to_wait = min(max(0.0, retry_after_seconds or 0.0), LONGEST_RETRY_AFTER_SECONDS)
        state = self.state
        if state == "open":  # calls from before the pause end one after the other: the pause does not double for each
            self._open_until = max(self._open_until, self._clock() + asked_to_wait)
            return
        self._failures += 1
        if state == "half-open" or at_once or asked_to_wait or self._failures >= self._failures_to_open:
            self._open(at_least_seconds=asked_to_wait)

    def released(self) -> None:
        """The call ended without a verdict: the reader left, or the payload was refused. The next may probe."""
        self._probing = False

    def _open(self, *, at_least_seconds: float) -> None:
        bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._pauses, _DOUBLINGS))
        jittered = bound * self._random.uniform(0.75, 1.0)  # so that replicas do not probe together
        self._open_until = self._clock() + max(jittered, at_least_seconds)
        self._pauses += 1
        self._failures = 0
        self._probing = False
