"""Works on the batches of all users while the server runs. Several servers on one database share the batches."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Row

from everswarm.server.batches import repository
from everswarm.server.batches.files import delete_old_files
from everswarm.server.batches.repository import Lease, LeaseLostError
from everswarm.server.batches.run import BatchRun
from everswarm.server.batches.stages import Clock
from everswarm.server.database import Database
from everswarm.server.swarm.requests import ChatRequest
from everswarm.server.swarm.service import Swarm

CONCURRENCY = 8  # requests of batches in flight; several batches share them
BATCHES_AT_ONCE = 16  # each has one request in flight at least, so that a spent quota of one stops no other
LEASE_SECONDS = 30.0  # after which the batches of a killed server are another's, or its own when it is back
BEAT_SECONDS = 5.0  # between looks at the database
GRACE_SECONDS = 60.0  # that requests in flight have to end, when their batch is cancelled or its time is over
SWEEP_SECONDS = 3600.0  # between deletions of old files

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return this moment."""
    return datetime.now(UTC)


class BatchRunner:
    """A task of the server. It takes batches by lease: a killed server's go on elsewhere, and never twice at a time."""

    def __init__(
        self,
        database: Database,
        swarm: Swarm,
        *,
        clock: Clock = utc_now,
        concurrency: int = CONCURRENCY,
        beat_seconds: float = BEAT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Work on the batches in `database` with the models of `swarm`; `clock` says what time it is."""
        self._database, self._swarm, self._clock = database, swarm, clock
        self._concurrency, self._beat_seconds, self._grace_seconds = concurrency, beat_seconds, grace_seconds
        self._runs: dict[BatchRun, asyncio.Task[None]] = {}
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._swept_at: datetime | None = None

    def start(self) -> None:
        """Begin, in the running loop; return at once."""
        self._loop = asyncio.get_running_loop()
        self._stopping = False
        self._task = asyncio.create_task(self._keep_beating())

    async def stop(self) -> None:
        """End the calls in flight, which run again at the next start, and give the batches back."""
        if self._task is None:
            return
        self._stopping = True  # not cancelled: a batch that is being taken just now would stay taken
        self._woken.set()
        await asyncio.gather(self._task, return_exceptions=True)
        runs = dict(self._runs)
        for task in runs.values():
            task.cancel()
        await asyncio.gather(*runs.values(), return_exceptions=True)
        for run in runs:
            await run.written()
        await self._in_transaction(repository.release_leases, [run.lease for run in runs])

    def wake(self) -> None:
        """Look at the database now: a batch has come, or was cancelled. May be called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._woken.set)

    async def _keep_beating(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                await self._beat()
            except Exception:
                log.exception("the batches could not be looked at; the next try is in %s s", self._beat_seconds)
            try:
                async with asyncio.timeout(self._beat_seconds):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _beat(self) -> None:
        """Renew what is held, end what should end, take what is free."""
        now = self._clock()
        if self._runs:
            await self._renew(now)
        room = BATCHES_AT_ONCE - len(self._runs)
        for lease, row in await run_in_threadpool(self._take, now, room):
            self._begin(lease, row)
        if self._swept_at is None or now - self._swept_at >= timedelta(seconds=SWEEP_SECONDS):
            self._swept_at = now
            await run_in_threadpool(delete_old_files, self._database, now=now)

    async def _renew(self, now: datetime) -> None:
        leases = [run.lease for run in self._runs]
        statuses: Mapping[str, str] = await self._in_transaction(
            repository.renew_leases, leases, until=now + timedelta(seconds=LEASE_SECONDS)
        )
        for run, task in list(self._runs.items()):
            status = statuses.get(run.lease.batch_id)
            if status is None and run.lease in leases:
                task.cancel()
            elif status == "cancelling" or now >= run.expires_at:
                run.end_early()

    def _take(self, now: datetime, room: int) -> list[tuple[Lease, Row[Any]]]:
        """Take up to `room` batches; looks first, because only a writer holds up others."""
        with self._database.read() as connection:
            free = repository.free_batches(connection, now=now, limit=room) if room > 0 else []
        if not free:
            return []
        leases = [Lease(batch_id, secrets.token_hex(16)) for batch_id in free]
        until = now + timedelta(seconds=LEASE_SECONDS)
        with self._database.transaction() as connection:
            rows = [(lease, repository.take_batch(connection, lease, now=now, until=until)) for lease in leases]
        return [(lease, row) for lease, row in rows if row is not None]

    def _begin(self, lease: Lease, row: Row[Any]) -> None:
        run = BatchRun(
            self._database,
            lease,
            row,
            answer=self._answer,
            share=self._share,
            grace_seconds=self._grace_seconds,
            clock=self._clock,
        )
        if self._clock() >= run.expires_at:
            run.end_early()
        self._runs[run] = asyncio.create_task(run.to_the_end())
        self._runs[run].add_done_callback(partial(self._ended, run))

    def _ended(self, run: BatchRun, task: asyncio.Task[None]) -> None:
        """Forget a run. One that failed keeps its lease, so that the next try is not at once."""
        self._runs.pop(run, None)
        self._woken.set()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LeaseLostError):
            log.info("%s", error)
        elif error is not None:
            log.error("the batch %s stopped; it goes on in %s s", run.lease.batch_id, LEASE_SECONDS, exc_info=error)

    def _share(self) -> int:
        return max(1, self._concurrency // max(1, len(self._runs)))

    async def _answer(self, request: ChatRequest, user: str) -> dict[str, Any]:
        return await self._swarm.answer_batched(request, user=user)

    async def _in_transaction(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def in_thread() -> Any:
            with self._database.transaction() as connection:
                return work(connection, *args, **options)

        return await run_in_threadpool(in_thread)
