"""How many records a key may upload in an hour. In memory: a restart forgives, and each replica counts for itself."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from everswarm.errors import QuotaSpentError

HOUR_SECONDS = 3600
MAX_KEYS = 20_000  # about 5 MB; beyond, the key that sent nothing for the longest time starts afresh


class RecordLimit:
    """A bucket for each key, full at first, that fills again within an hour. Not for use by several threads."""

    def __init__(self, records_per_hour: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Let each key upload `records_per_hour`; `clock` gives seconds."""
        self._per_hour = records_per_hour
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # records, and when that was so

    def check(self, key: str) -> None:
        """Refuse a key that may upload nothing now, before its request is read.

        Raises:
            QuotaSpentError: less than one record is left.
        """
        self.take(key, 0, least=1)

    def take(self, key: str, records: int, *, least: int = 0) -> None:
        """Count `records` of `key`. A full bucket takes any batch, else a low limit could never be met.

        Args:
            key: who uploads.
            records: how many.
            least: how many must be left, where more than `records`.

        Raises:
            QuotaSpentError: fewer are left; nothing was counted.
        """
        left, now = self._now_left(key), self._clock()
        wanted = min(max(records, least), self._per_hour)
        if left < wanted:
            raise self._refusal(records, left, wait_seconds=math.ceil((wanted - left) * HOUR_SECONDS / self._per_hour))
        self._left[key] = (left - records, now)
        self._left.move_to_end(key)
        if len(self._left) > MAX_KEYS:
            self._left.popitem(last=False)

    def give_back(self, key: str, records: int) -> None:
        """Uncount what could not be stored, so that who tries again is not refused for it."""
        self._left[key] = (min(self._now_left(key) + records, self._per_hour), self._clock())

    def _now_left(self, key: str) -> float:
        left, since = self._left.get(key, (float(self._per_hour), self._clock()))
        return min(left + (self._clock() - since) * self._per_hour / HOUR_SECONDS, self._per_hour)

    def _refusal(self, records: int, left: float, *, wait_seconds: int) -> QuotaSpentError:
        asked = f"sent {records:,} records and may send {max(int(left), 0):,} now" if records else "may send none now"
        return QuotaSpentError(
            f"This key {asked}: the limit is {self._per_hour:,} records an hour. Nothing of this was stored; send it "
            f"again in {wait_seconds:,} s. Whoever runs the server can raise feedback.records_per_hour.",
            retry_after_seconds=max(wait_seconds, 1),
        )
