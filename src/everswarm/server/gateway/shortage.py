"""Whether several calls would fit into what is left of the quotas, before the first of them is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.quota_store import QuotaStore


@dataclass
class _Room:
    """What is left of one quota."""

    tokens: int | None  # None: not limited
    requests: int | None

    def holds(self, tokens: int) -> bool:
        return (self.tokens is None or self.tokens >= tokens) and (self.requests is None or self.requests >= 1)

    def take(self, tokens: int) -> None:
        self.tokens = None if self.tokens is None else self.tokens - tokens
        self.requests = None if self.requests is None else self.requests - 1


async def find_shortage(
    endpoints: Sequence[Endpoint], needs: Sequence[tuple[str, int]], *, store: QuotaStore, priority: Priority
) -> str | None:
    """Say why calls of (role or model, tokens) would not all fit now; None where they do.

    Each is given to the endpoint that has most left of those that can take it. A role that nobody serves needs nothing
    here.
    """
    rooms: dict[str, _Room] = {}
    for role, tokens in needs:
        able = [endpoint for endpoint in endpoints if role in endpoint.roles or role == endpoint.model]
        limited = [endpoint for endpoint in able if endpoint.quota is not None and endpoint.quota.limits]
        if len(limited) < len(able) or not able:
            continue
        for endpoint in limited:
            if (quota := endpoint.quota) is not None and quota.key not in rooms:
                rooms[quota.key] = await _room(endpoint, store, priority)
        choices = [rooms[endpoint.quota.key] for endpoint in limited if endpoint.quota is not None]
        room = max(choices, key=lambda room: (room.holds(tokens), _left(room)))
        if not room.holds(tokens):
            left = f"{room.tokens} tokens" if room.tokens is not None and room.tokens < tokens else "no requests"
            return f"the quota of '{role}' has {left} left, and {tokens} tokens may be needed"
        room.take(tokens)
    return None


def _left(room: _Room) -> float:
    return float("inf") if room.tokens is None else room.tokens


async def _room(endpoint: Endpoint, store: QuotaStore, priority: Priority) -> _Room:
    state, quota = await endpoint.look_at_quota(store), endpoint.quota
    if state is None or quota is None:
        return _Room(None, None)
    if state.closed_until is not None:
        return _Room(0, 0)
    left: dict[str, int] = {}
    for limit in state.limits:
        free = limit.left - (limit.amount - quota.allowed(limit.amount, priority))
        left[limit.unit] = max(0, min(free, left.get(limit.unit, free)))
    return _Room(left.get("tokens"), left.get("requests"))
