"""The line in which requests wait for a quota: bounded, people first, then devices, then batches.

Knows nothing of models: it asks the quota store for each endpoint that a request may use, in the request's own order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from everswarm.errors import BadRequestError, EverswarmError, QuotaSpentError, UnavailableError
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.quota import Quota, Reservation
from everswarm.server.gateway.quota_store import QuotaStore

LOOK_SECONDS = 1.0  # at the least so often: other processes give back too, and cannot tell us
STOPPING = "The server is stopping. Send this again when it is back."
_RANK = {Priority.INTERACTIVE: 0, Priority.DEVICE: 1, Priority.BATCH: 2}

_log = logging.getLogger(__name__)


class Limited(Protocol):
    """What the line needs to know of an endpoint."""

    name: str
    quota: Quota | None
    answer_tokens: int

    @property
    def is_worth_a_try(self) -> bool:
        """Whether a request may be sent now."""


class Admitted(NamedTuple):
    """The right to call `endpoints[position]`; `reservation` is None where it has no quota."""

    position: int
    reservation: Reservation | None


@dataclass(eq=False)
class Ticket:
    """A request on its way through the line."""

    priority: Priority
    prompt_tokens: int = 0  # an estimate
    answer_tokens: int | None = None  # the longest answer; None for what the endpoint's is
    choices: int = 1  # answers at once
    deadline: float | None = None  # on the line's clock; None to wait as long as it takes
    places: list[tuple[int, Limited]] = field(default_factory=list)  # where it may go, and their positions
    queued_seconds: float = 0.0
    in_line: bool = False
    number: int = 0
    admitted: asyncio.Future[Admitted] | None = field(default=None, repr=False)

    def need(self, endpoint: Limited) -> int:
        """Return how many tokens it may use there."""
        return self.prompt_tokens + (self.answer_tokens or endpoint.answer_tokens) * self.choices

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: the smaller."""
        return _RANK[self.priority], self.number


class Line:
    """All requests of this process that wait."""

    def __init__(self, store: QuotaStore, *, length: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let at most `length` requests wait."""
        self._store = store
        self._length = length
        self._clock = clock
        self._waiting: list[Ticket] = []  # in order
        self._numbers = itertools.count()
        self._changed = asyncio.Event()
        self._attendant: asyncio.Task[None] | None = None
        self._is_closing = False

    def waiting(self) -> dict[Priority, int]:
        """Return how many wait."""
        return {kind: sum(ticket.priority is kind for ticket in self._waiting) for kind in Priority}

    async def admit(self, ticket: Ticket, endpoints: Sequence[Limited]) -> Admitted:
        """Return the first of `endpoints` that has quota left for `ticket`, and the reservation there.

        Raises:
            QuotaSpentError: none has, and waiting is not possible: the line is full, or it would take too long.
            BadRequestError: the request is larger than the quota of any of them.
        """
        ahead = [other for other in self._waiting if _RANK[other.priority] <= _RANK[ticket.priority]]
        taken = {_key(endpoint) for other in ahead for _, endpoint in other.places}
        ticket.places, too_large, closed = [], "", []
        for position, endpoint in enumerate(endpoints):
            quota, tokens = endpoint.quota, ticket.need(endpoint)
            if quota is None:
                return Admitted(position, None)
            if _key(endpoint) not in taken or not quota.may_ever_hold(tokens, ticket.priority):  # nobody is overtaken
                answer = await self._store.reserve(quota, tokens, priority=ticket.priority)
                if isinstance(answer, Reservation):
                    return Admitted(position, answer)
                if answer.never:
                    too_large = f"'{endpoint.name}': {answer.reason}"
                    continue
                closed += [answer.reason] if answer.closed else []
            ticket.places.append((position, endpoint))
        if not ticket.places:
            raise BadRequestError(too_large)
        return await self._wait(ticket, " ".join(closed))

    async def eta_seconds(self, ticket: Ticket) -> float:
        """Return in how many seconds `ticket` can be admitted, if those ahead of it use all that they asked for."""
        ahead: dict[str, int] = {}
        for other in self._waiting:
            if other is not ticket and other.order < ticket.order:
                _, first = min(other.places, key=lambda place: ahead.get(_key(place[1]), 0))
                ahead[_key(first)] = ahead.get(_key(first), 0) + other.need(first)
        return min(
            [
                await self._store.eta_seconds(
                    endpoint.quota, ticket.need(endpoint) + ahead.get(_key(endpoint), 0), priority=ticket.priority
                )
                for _, endpoint in ticket.places
                if endpoint.quota is not None
            ],
            default=0.0,
        )

    def look(self) -> None:
        """Something was given back, or an endpoint came up: somebody may be admitted now."""
        if self._waiting:
            self._changed.set()

    def turn_all_away(self) -> None:
        """Let nobody wait any more: the server stops."""
        self._is_closing = True
        for ticket in list(self._waiting):
            self._turn_away(ticket, UnavailableError(STOPPING))

    async def close(self) -> None:
        """Turn away all that wait."""
        self.turn_all_away()
        if self._attendant is not None:
            self._attendant.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._attendant

    async def _wait(self, ticket: Ticket, closed: str) -> Admitted:
        """Wait for the turn of `ticket`; `closed` says which endpoints closed themselves, and why."""
        if self._is_closing:
            raise UnavailableError(STOPPING)
        ticket.number = next(self._numbers)
        eta_seconds = await self.eta_seconds(ticket)
        since = self._clock()
        if ticket.deadline is not None and since + eta_seconds > ticket.deadline:
            wait_seconds = max(0.0, ticket.deadline - since)
            room = f"There is room in {eta_seconds:.0f} s, and the request may wait {wait_seconds:.0f} s."
            raise _spent(f"{closed} {room}".strip(), eta_seconds)
        self._make_room(ticket, eta_seconds)
        ticket.admitted, ticket.in_line = asyncio.get_running_loop().create_future(), True
        self._waiting.append(ticket)
        self._waiting.sort(key=lambda other: other.order)
        self._attend()
        try:
            return await self._until_deadline(ticket, ticket.admitted)
        except asyncio.CancelledError:
            self._give_back(ticket)
            raise
        finally:
            ticket.queued_seconds += self._clock() - since
            self._leave(ticket)

    async def _until_deadline(self, ticket: Ticket, admitted: asyncio.Future[Admitted]) -> Admitted:
        if ticket.deadline is None:
            return await admitted
        await asyncio.wait({admitted}, timeout=max(0.0, ticket.deadline - self._clock()))
        if not admitted.done():
            self._leave(ticket)
            admitted.cancel()
            raise _spent("The request has waited as long as it may.", await self.eta_seconds(ticket))
        return admitted.result()

    def _make_room(self, ticket: Ticket, eta_seconds: float) -> None:
        """Let the last of a lower class go where the line is full."""
        if len(self._waiting) < self._length:
            return
        last = self._waiting[-1] if self._waiting else None
        if last is None or _RANK[last.priority] <= _RANK[ticket.priority]:
            raise _spent(f"{len(self._waiting)} requests wait already, the most that may.", eta_seconds)
        self._turn_away(last, _spent("The line is full, and others go first.", eta_seconds))

    def _turn_away(self, ticket: Ticket, error: EverswarmError) -> None:
        if ticket.admitted is not None and not ticket.admitted.done():
            ticket.admitted.set_exception(error)
        self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        ticket.in_line = False
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._changed.set()

    def _give_back(self, ticket: Ticket) -> None:
        """The reader left in the very moment in which the request was admitted."""
        future = ticket.admitted
        if future is not None and future.done() and not future.cancelled() and future.exception() is None:
            reservation = future.result().reservation
            if reservation is not None:
                self._store.cancel_soon(reservation)

    def _attend(self) -> None:
        self._changed.set()
        if self._attendant is None or self._attendant.done():
            self._attendant = asyncio.create_task(self._admit_in_order())

    async def _admit_in_order(self) -> None:
        while self._waiting:
            self._changed.clear()
            pause_seconds = LOOK_SECONDS
            try:
                pause_seconds = await self._pass_along()
            except Exception:  # the quota store may come back
                _log.exception("nobody can be admitted from the line")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(pause_seconds, LOOK_SECONDS))

    async def _pass_along(self) -> float:
        """Admit all that can be, the first first; return after how many seconds to look again."""
        blocked: set[str] = set()  # quotas for which somebody further ahead waits
        pause_seconds = LOOK_SECONDS
        for ticket in list(self._waiting):
            for place in list(ticket.places):
                position, endpoint = place
                if _key(endpoint) in blocked or not endpoint.is_worth_a_try or endpoint.quota is None:
                    continue
                tokens = ticket.need(endpoint)
                answer = await self._store.reserve(endpoint.quota, tokens, priority=ticket.priority)
                if isinstance(answer, Reservation):
                    self._hand_over(ticket, Admitted(position, answer))
                    break
                if answer.never:  # a limit was lowered meanwhile
                    ticket.places.remove(place)
                    if not ticket.places:
                        self._turn_away(ticket, BadRequestError(f"'{endpoint.name}': {answer.reason}"))
                    continue
                pause_seconds = min(pause_seconds, answer.retry_after_seconds)
            else:
                blocked.update(_key(endpoint) for _, endpoint in ticket.places)
        return max(pause_seconds, 0.01)

    def _hand_over(self, ticket: Ticket, admitted: Admitted) -> None:
        if ticket.admitted is not None and not ticket.admitted.done():
            ticket.admitted.set_result(admitted)
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        elif admitted.reservation is not None:  # it left while we asked
            self._store.cancel_soon(admitted.reservation)


def _key(endpoint: Limited) -> str:
    return endpoint.quota.key if endpoint.quota is not None else endpoint.name


def _spent(reason: str, eta_seconds: float) -> QuotaSpentError:
    text = f"The quota is spent. {reason} A request may wait longer with X-Everswarm-Wait-Seconds."
    return QuotaSpentError(text, retry_after_seconds=max(1, math.ceil(eta_seconds)))
