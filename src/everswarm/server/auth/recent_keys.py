"""The keys that were used a moment ago, so that not every request asks the database. Keeps hashes, never a key."""

from __future__ import annotations

import asyncio
import threading
import time
from weakref import WeakKeyDictionary

from everswarm.server.auth.principal import Principal
from everswarm.server.database import Database

TTL_SECONDS = 5.0  # how long a key that another process revoked may still work
LOOK_AHEAD_SECONDS = 2.0  # before that, one of the requests has a key that is in use looked up again
MAX_KEYS = 10_000  # about 4 MB


class RecentKeys:
    """The principals of one database that were looked up lately. Only keys that exist are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[bytes, tuple[Principal, float]] = {}  # the oldest first
        self.looking: dict[bytes, asyncio.Task[Principal]] = {}  # look-ups that run now
        self.revocations = 0  # read before a look-up: what was looked up before a revocation is not kept after it

    def find(self, sha256: bytes) -> tuple[Principal, bool] | None:
        """Return who holds the key with this hash, and whether to look it up again; None when that was long ago."""
        found = self._until.get(sha256)
        if found is None:
            return None
        left_seconds = found[1] - time.monotonic()
        return (found[0], left_seconds < LOOK_AHEAD_SECONDS) if left_seconds > 0 else None

    def keep(self, sha256: bytes, principal: Principal, *, revocations: int) -> None:
        """Remember who holds a key, unless one was revoked since `revocations` was read."""
        with self._lock:
            if revocations != self.revocations:
                return
            self._until.pop(sha256, None)
            if len(self._until) >= MAX_KEYS:
                del self._until[next(iter(self._until))]
            self._until[sha256] = (principal, time.monotonic() + TTL_SECONDS)

    def drop(self, sha256: bytes) -> None:
        """Forget one key."""
        with self._lock:
            self._until.pop(sha256, None)

    def forget(self) -> None:
        """Look every key up again."""
        with self._lock:
            self.revocations += 1
            self._until.clear()


_of_databases: WeakKeyDictionary[Database, RecentKeys] = WeakKeyDictionary()
_lock = threading.Lock()


def recent_keys(database: Database) -> RecentKeys:
    """Return what this process knows of the keys of `database`."""
    found = _of_databases.get(database)
    if found is None:
        with _lock:
            found = _of_databases.setdefault(database, RecentKeys())
    return found


def forget_all_keys() -> None:
    """Look every key up again: one was revoked, perhaps through another `Database` on the same place."""
    with _lock:
        known = list(_of_databases.values())
    for keys in known:
        keys.forget()
