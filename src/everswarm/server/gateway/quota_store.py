"""Reserve, settle, cancel: the quotas that all processes share. One algorithm (`Ledger`) over two kinds of SQL.

Takes a quota and an estimate, gives a reservation or a refusal. What a process holds is known in its own memory and
written as a whole with each change, so nothing is lost or counted twice when a write fails or a lease has run out.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from everswarm.errors import EverswarmError, UnavailableError
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.quota import MICROSECONDS, Quota, QuotaState, Refusal, Reservation
from everswarm.server.gateway.quota_ledger import Ledger
from everswarm.server.gateway.rate_headers import Correction

BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0  # a process that was silent for so long holds nothing any more
SETTLE_SECONDS = 0.003  # a call that nobody waits for is settled with the next request, or after so long

T = TypeVar("T")
log = logging.getLogger(__name__)


class QuotaStore(Protocol):
    """The quotas of all endpoints, shared between processes. Bound to one event loop: that of its first call."""

    async def reserve(self, quota: Quota, tokens: int, *, priority: Priority) -> Reservation | Refusal:
        """Set aside one request and up to `tokens`.

        Raises:
            UnavailableError: the store cannot be read; then nothing is granted.
            NoSpaceError: the disk is full.
        """

    async def settle(self, quota: Quota, reservation: Reservation, tokens: int) -> None:
        """Count one request and the `tokens` that it really used; more than was reserved is counted too.

        The second time nothing happens. While the store cannot be written it stays held, and is settled with the next
        change or beat.
        """

    async def cancel(self, reservation: Reservation) -> None:
        """Give all back: nothing was sent. The second time nothing happens."""

    def settle_soon(
        self, quota: Quota, reservation: Reservation, tokens: int, corrections: Sequence[Correction] = ()
    ) -> None:
        """As `settle`, and then `correct`, within milliseconds; every later call of this process sees it."""

    def cancel_soon(self, reservation: Reservation) -> None:
        """As `cancel`, within milliseconds; every later call of this process sees it."""

    async def close_key(self, key: str, *, seconds: float, reason: str) -> None:
        """Grant nothing for `seconds`, because the endpoint said so; a longer closure stays. Raises as `reserve`."""

    async def correct(self, quota: Quota, corrections: Sequence[Correction]) -> None:
        """Heed the headers of an answer. Settle its reservation first, or it counts twice. Raises as `reserve`."""

    async def view(self, quota: Quota) -> QuotaState:
        """Return how much is used, held and left. Raises as `reserve`."""

    async def eta_seconds(self, quota: Quota, tokens: int, *, priority: Priority, requests: int = 1) -> float:
        """Return when `tokens` in `requests` more would fit, if nothing is given back. Raises as `reserve`."""

    async def beat(self) -> None:
        """Keep what this process holds; to be called every BEAT_SECONDS. Never raises for a store that is down."""

    async def close(self) -> None:
        """Give back what this process holds, and the connections."""


class LedgerFile(Protocol):
    """Where ledgers are kept, one a key."""

    def change_now(self, changes: Sequence[Change]) -> bool:
        """Make `changes`, each of another key, in one transaction without waiting; False where that is not possible.

        Raises:
            UnavailableError: the store cannot be written; nothing is changed.
            NoSpaceError: the disk is full; nothing is changed.
        """

    async def change(self, change: Change) -> None:
        """Make `change` as soon as no other process is at it. Raises as `change_now`.

        Once begun it is not cancelled: `committed` is called if and only if the change is stored.
        """

    async def read(self, key: str, work: Callable[[Ledger], T]) -> T:
        """Do `work`, which changes nothing."""

    async def upkeep(self) -> None:
        """Tidy up, now and then."""

    async def close(self) -> None:
        """Give back connections."""


class Change(Protocol):
    """What is to be done on one ledger, alone among all processes."""

    key: str

    def work(self, ledger: Ledger) -> None:
        """Do it; the ledger is saved if it changed. May be called again where a transaction failed."""

    def committed(self) -> None:
        """It is stored."""


@dataclass(slots=True, eq=False)
class _Account:
    """What this process has of one key, and what it wants of it."""

    key: str
    held: dict[str, int] = field(default_factory=dict)  # reservation → tokens
    done: list[tuple[Quota, int, Sequence[Correction]] | None] = field(default_factory=list)  # settled; None: cancelled
    wanted: list[_Wanted] = field(default_factory=list)
    is_being_written: bool = False


@dataclass(slots=True, eq=False)
class _Wanted:
    """One thing to be done on a ledger; its result goes to who waits for it."""

    work: Callable[[Ledger], Any]
    result: asyncio.Future[Any]
    reservation: Reservation | None = None  # held from then on where the result is None


class _Batch:
    """All that this process wants of one key at one moment. A `Change`."""

    def __init__(self, owner: str, account: _Account) -> None:
        self.key = account.key
        self.account = account
        self._owner = owner
        self._done = tuple(account.done)
        self._wanted, account.wanted = account.wanted, []
        self._tokens, self._requests = sum(account.held.values()), len(account.held)
        self._results: list[Any] = []

    def work(self, ledger: Ledger) -> None:
        """Book what is settled, then do what is wanted, in order."""
        tokens, requests = self._tokens, self._requests
        ledger.hold(self._owner, tokens=tokens, requests=requests)
        for used in self._done:
            ledger.changed = True
            if used is not None:
                quota, spent, corrections = used
                ledger.book(quota, spent)
                ledger.correct(quota, corrections)
        self._results = []
        for wanted in self._wanted:
            result = wanted.work(ledger)
            if wanted.reservation is not None and result is None:
                tokens, requests = tokens + wanted.reservation.tokens, requests + 1
                ledger.hold(self._owner, tokens=tokens, requests=requests)
                ledger.changed = True
            self._results.append(result)

    def committed(self) -> None:
        """Tell those who wait. What was granted to somebody who left meanwhile is given back with the next change."""
        account = self.account
        del account.done[: len(self._done)]
        for wanted, result in zip(self._wanted, self._results, strict=True):
            granted = wanted.reservation if result is None else None
            if wanted.result.done():
                account.done += [None] if granted is not None else []
                continue
            if granted is not None:
                account.held[granted.id] = granted.tokens
            wanted.result.set_result(granted if granted is not None else result)

    def failed(self, error: EverswarmError) -> None:
        """Tell those who wait; what is settled stays to be written."""
        for wanted in self._wanted:
            if not wanted.result.done():
                wanted.result.set_exception(error)


class SharedQuotaStore:
    """`QuotaStore` over any `LedgerFile`. One object is one owner of reservations.

    What is asked for in one turn of the event loop goes into one transaction, and what is settled goes with it.
    """

    def __init__(self, ledgers: LedgerFile) -> None:
        self._ledgers = ledgers
        self._owner = uuid.uuid4().hex
        self._granted = 0
        self._accounts: dict[str, _Account] = {}
        self._dirty: dict[str, _Account] = {}
        self._flush_at: asyncio.Handle | None = None
        self._flushes_soon = False
        self._writing: set[asyncio.Task[None]] = set()

    async def reserve(self, quota: Quota, tokens: int, *, priority: Priority) -> Reservation | Refusal:
        """See `QuotaStore`."""
        self._granted += 1
        reservation = Reservation(f"{self._owner}-{self._granted}", quota.key, tokens)
        account = self._account_of(quota.key)
        wanted = _Wanted(lambda ledger: ledger.refusal(quota, tokens, priority=priority), _future(), reservation)
        account.wanted.append(wanted)
        self._flush_soon(account)
        try:
            decision: Reservation | Refusal = await wanted.result
        except asyncio.CancelledError:
            self._finish(reservation, None)  # granted, and nobody is there to take it
            raise
        return decision

    async def settle(self, quota: Quota, reservation: Reservation, tokens: int) -> None:
        """See `QuotaStore`."""
        if self._finish(reservation, (quota, tokens, ())):
            await self._written(reservation.key)

    async def cancel(self, reservation: Reservation) -> None:
        """See `QuotaStore`."""
        if self._finish(reservation, None):
            await self._written(reservation.key)

    def settle_soon(
        self, quota: Quota, reservation: Reservation, tokens: int, corrections: Sequence[Correction] = ()
    ) -> None:
        """See `QuotaStore`."""
        self._finish(reservation, (quota, tokens, corrections))

    def cancel_soon(self, reservation: Reservation) -> None:
        """See `QuotaStore`."""
        self._finish(reservation, None)

    async def close_key(self, key: str, *, seconds: float, reason: str) -> None:
        """See `QuotaStore`."""
        await self._do(key, lambda ledger: ledger.close(seconds=seconds, reason=reason))

    async def correct(self, quota: Quota, corrections: Sequence[Correction]) -> None:
        """See `QuotaStore`."""
        if corrections:
            await self._do(quota.key, lambda ledger: ledger.correct(quota, corrections))

    async def view(self, quota: Quota) -> QuotaState:
        """See `QuotaStore`."""
        await self._settled(quota.key)
        return await self._ledgers.read(quota.key, lambda ledger: ledger.view(quota))

    async def eta_seconds(self, quota: Quota, tokens: int, *, priority: Priority, requests: int = 1) -> float:
        """See `QuotaStore`."""
        await self._settled(quota.key)
        return await self._ledgers.read(
            quota.key,
            lambda ledger: (
                ledger.microseconds_until(quota, tokens, requests=requests, priority=priority) / MICROSECONDS
            ),
        )

    async def beat(self) -> None:
        """See `QuotaStore`."""
        try:
            for key, account in list(self._accounts.items()):
                if account.held or account.done:
                    await self._do(key, _save)
            await self._ledgers.upkeep()
        except EverswarmError as error:
            log.warning("The quotas could not be kept up: %s", error)

    async def close(self) -> None:
        """See `QuotaStore`."""
        for account in self._accounts.values():
            account.done += [None] * len(account.held)
            account.held.clear()
        await self.beat()
        await asyncio.gather(*self._writing, return_exceptions=True)
        if self._flush_at is not None:
            self._flush_at.cancel()
        await self._ledgers.close()

    def _account_of(self, key: str) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(key)
        return account

    def _finish(self, reservation: Reservation, used: tuple[Quota, int, Sequence[Correction]] | None) -> bool:
        """Note that a reservation is used, or not needed; False where that was noted before."""
        account = self._account_of(reservation.key)
        if account.held.pop(reservation.id, None) is None:
            return False
        account.done.append(used)
        self._flush_soon(account, in_seconds=SETTLE_SECONDS)
        return True

    async def _do(self, key: str, work: Callable[[Ledger], None]) -> None:
        account = self._account_of(key)
        wanted = _Wanted(work, _future())
        account.wanted.append(wanted)
        self._flush_soon(account)
        await wanted.result

    async def _settled(self, key: str) -> None:
        """Return when what is settled in this process can be read."""
        account = self._accounts.get(key)
        if account is not None and account.done:
            await self._written(key)

    async def _written(self, key: str) -> None:
        """Return when all that was noted is stored; where it cannot be, it is stored with a later change."""
        try:
            await self._do(key, _save)
        except EverswarmError as error:
            log.warning("A call is settled later, and stays held until then: %s", error)

    def _flush_soon(self, account: _Account, *, in_seconds: float = 0.0) -> None:
        self._dirty[account.key] = account
        if self._flushes_soon or (self._flush_at is not None and in_seconds):
            return
        loop = asyncio.get_running_loop()
        if self._flush_at is not None:
            self._flush_at.cancel()
        self._flushes_soon = not in_seconds
        self._flush_at = loop.call_later(in_seconds, self._flush) if in_seconds else loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_at, self._flushes_soon = None, False
        batches = [_Batch(self._owner, account) for account in self._dirty.values() if not account.is_being_written]
        self._dirty = {key: account for key, account in self._dirty.items() if account.is_being_written}
        try:
            if not batches or self._ledgers.change_now(batches):
                return
        except Exception as error:
            for batch in batches:
                batch.failed(_known(error))
            return
        for batch in batches:
            batch.account.is_being_written = True
            task = asyncio.get_running_loop().create_task(self._write(batch))
            self._writing.add(task)
            task.add_done_callback(self._writing.discard)

    async def _write(self, batch: _Batch) -> None:
        try:
            await self._ledgers.change(batch)
        except Exception as error:
            batch.failed(_known(error))
        finally:
            batch.account.is_being_written = False
            if batch.account.wanted:
                self._flush_soon(batch.account)
            elif batch.account.done:
                self._flush_soon(batch.account, in_seconds=SETTLE_SECONDS)


def open_quota_store(
    *,
    home: Path,
    database_url: str | None,
    clock: Callable[[], float] | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> QuotaStore:
    """Open the quotas: a file in `home`, or the Postgres of `database_url`, which several hosts share.

    Args:
        home: folder of all state.
        database_url: used where it is a Postgres; the file is, otherwise.
        clock: seconds since 1970. Default: this machine's for the file; the database's for Postgres, so that hosts
            agree.
        lease_seconds: after so much silence a process holds nothing.

    Raises:
        ConfigurationError: the file cannot be made.
        UnavailableError: it cannot be opened.
    """
    lease_us = round(lease_seconds * MICROSECONDS)
    if database_url is not None and database_url.startswith("postgres"):
        from everswarm.server.gateway.quota_postgres import PostgresLedgers

        return SharedQuotaStore(PostgresLedgers(database_url, clock=clock, lease_us=lease_us))
    from everswarm.server.gateway.quota_sqlite import SqliteLedgers

    return SharedQuotaStore(SqliteLedgers(home, clock=clock or time.time, lease_us=lease_us))


def _known(error: Exception) -> EverswarmError:
    """Return what those who wait are told; nobody may wait for ever because of a surprise."""
    if isinstance(error, EverswarmError):
        return error
    log.error("The quotas met an error that nobody expected.", exc_info=error)
    return UnavailableError("The quotas could not be counted, so the request was not sent. The server's log says why.")


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _save(ledger: Ledger) -> None:
    ledger.changed = True
