"""One batch that this server holds, from where it stands to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from fastapi.concurrency import run_in_threadpool
from pydantic import ValidationError
from sqlalchemy import Row
from sqlalchemy.exc import OperationalError

from everswarm.errors import BadRequestError, EverswarmError, NoSpaceError, UnavailableError
from everswarm.server.batches import repository
from everswarm.server.batches.objects import error_object
from everswarm.server.batches.repository import Lease, LeaseLostError
from everswarm.server.batches.stages import Clock, encoded, finish_batch, validate_batch
from everswarm.server.database import Database
from everswarm.server.swarm.requests import ChatRequest

ITEMS_A_PAGE = 16  # requests read ahead
LONGEST_WAIT_SECONDS = 3600.0  # before a request that went back is tried again, whatever the endpoint said
STORE_AGAIN_SECONDS = 5.0  # when the database does not take a result: the tokens are spent, so it is kept
UNEXPECTED = 500

Answer = Callable[[ChatRequest, str], Awaitable[Mapping[str, Any]]]  # the request, and the user that it is for
T = TypeVar("T")
log = logging.getLogger(__name__)


class Result(NamedTuple):
    """What became of one request."""

    state: str  # completed, failed
    status_code: int
    response: str  # JSON


class BatchRun:
    """Does the rest of one batch. Results are stored one by one, so that a kill loses only the calls in flight."""

    def __init__(
        self,
        database: Database,
        lease: Lease,
        batch: Row[Any],
        *,
        answer: Answer,
        share: Callable[[], int],
        grace_seconds: float,
        clock: Clock,
    ) -> None:
        """`share` says how many requests may be in flight now."""
        self.lease = lease
        self.expires_at = batch.expires_at
        self._database, self._owner, self._status = database, str(batch.owner), str(batch.status)
        self._answer, self._share, self._grace_seconds, self._clock = answer, share, grace_seconds, clock
        self._ending = asyncio.Event()
        self._writing: set[asyncio.Task[Any]] = set()

    def end_early(self) -> None:
        """Begin no more requests: the batch was cancelled, or its time is over."""
        self._ending.set()

    async def to_the_end(self) -> None:
        """Do what is left to do.

        Raises:
            LeaseLostError: another server has the batch.
        """
        status = self._status
        if status == "validating":
            status = await self._write(validate_batch, self._database, self.lease, clock=self._clock)
        if status == "in_progress":
            await self._answer_items()
        if status != "failed":
            await self._write(finish_batch, self._database, self.lease, clock=self._clock)

    async def written(self) -> None:
        """Wait for writes that go on after `to_the_end` was cancelled."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _answer_items(self) -> None:
        """Answer the waiting items in order; return when all have a result, or soon after `end_early`."""
        running: set[asyncio.Task[None]] = set()
        ending = asyncio.create_task(self._ending.wait())
        items: deque[Row[Any]] = deque()
        after, more = 0, True
        try:
            while not self._ending.is_set():
                if not items and more:
                    items.extend(await run_in_threadpool(self._read_page, after))
                    after, more = (items[-1].number, True) if items else (after, False)
                while items and len(running) < self._share():
                    running.add(asyncio.create_task(self._answer_item(items.popleft())))
                if not running:
                    return
                done, _ = await asyncio.wait({*running, ending}, return_when=asyncio.FIRST_COMPLETED)
                running = _still_running(running, done)
            if running:
                done, _ = await asyncio.wait(running, timeout=self._grace_seconds)
                running = _still_running(running, done)
        finally:
            for task in (ending, *running):
                task.cancel()
            await asyncio.gather(ending, *running, return_exceptions=True)

    def _read_page(self, after: int) -> list[Row[Any]]:
        with self._database.read() as connection:
            return repository.page_of_items(
                connection, self.lease.batch_id, states=("waiting",), after=after, limit=ITEMS_A_PAGE
            )

    async def _answer_item(self, item: Row[Any]) -> None:
        """Answer one item and store the result; without one when the batch ends before the endpoint can answer."""
        while not self._ending.is_set():
            try:
                result = await self._ask(item.request)
            except UnavailableError as refusal:
                await self._wait_for(refusal)
            else:
                await self._store(item.number, result)
                return

    async def _ask(self, request: str) -> Result:
        """Return the result of one request; raises UnavailableError when it should be tried again."""
        try:
            completion = await self._answer(_checked(request), self._owner)
            return Result("completed", 200, encoded(completion))
        except UnavailableError:
            raise
        except EverswarmError as error:
            return _failed(str(error), status=error.status)
        except Exception:
            log.exception("a request of %s met an error that nobody expected", self.lease.batch_id)
            return _failed("The server met an error that it did not expect. Its log has more.", status=UNEXPECTED)

    async def _wait_for(self, refusal: UnavailableError) -> None:
        """Wait as long as `refusal` says, or until the batch ends early."""
        seconds = min(max(1.0, refusal.retry_after_seconds or 0), LONGEST_WAIT_SECONDS)
        until = self._clock() + timedelta(seconds=seconds)
        with contextlib.suppress(UnavailableError, NoSpaceError, OperationalError):  # it is only said, not needed
            await self._write(self._note_waiting, waiting_for=str(refusal), waiting_until=until)
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return

    def _note_waiting(self, **values: Any) -> None:
        with self._database.transaction() as connection:
            repository.held_batch(connection, self.lease)
            repository.update_batch(connection, self.lease.batch_id, **values)

    async def _store(self, number: int, result: Result) -> None:
        while True:
            try:
                return await self._write(self._store_now, number, result)
            except LeaseLostError:
                raise
            except (EverswarmError, OperationalError) as error:
                log.warning("a result of %s cannot be stored yet: %s", self.lease.batch_id, error)
                await asyncio.sleep(STORE_AGAIN_SECONDS)

    def _store_now(self, number: int, result: Result) -> None:
        with self._database.transaction() as connection:
            repository.held_batch(connection, self.lease)
            repository.finish_item(connection, self.lease.batch_id, number, **result._asdict())

    async def _write(self, work: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run `work` in a thread to its end, also when the caller is cancelled."""
        task = asyncio.ensure_future(run_in_threadpool(work, *args, **options))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)


def _still_running(running: set[asyncio.Task[None]], done: set[asyncio.Task[Any]]) -> set[asyncio.Task[None]]:
    """Return those of `running` that are not in `done`; raises what one of those raised."""
    for task in running & done:
        task.result()
    return running - done


def _checked(request: str) -> ChatRequest:
    """Return the request of one item.

    Raises:
        BadRequestError: it is none; names the fields.
    """
    try:
        asked = ChatRequest.model_validate_json(request)
    except ValidationError as error:
        wrong = [f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()[:5]]
        raise BadRequestError("; ".join(wrong)) from error
    if asked.stream:
        raise BadRequestError("stream: a request of a batch has no stream. Leave it out.")
    return asked


def _failed(message: str, *, status: int) -> Result:
    return Result("failed", status, encoded(error_object(message, status=status)))
