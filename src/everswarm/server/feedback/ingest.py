"""One thread that stores what devices upload: all that waits goes into one transaction, and is answered after it.

A commit costs a sync of the disk; a hundred uploads in it cost little more than one. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeAlias

from everswarm.errors import NoSpaceError, UnavailableError
from everswarm.server.database import Database
from everswarm.server.feedback.drafting import Draft, Mask, Submission, draft
from everswarm.server.feedback.storing import Outcome, store_together

GROUP_RECORDS = 2_000  # after so many a transaction is closed, so that nobody else waits for long
MAX_WAITING_RECORDS = 20_000  # tens of megabytes
KNOWN_DEVICES = 50_000  # then what is known is forgotten, and asked of the database again
STOPPING = "The server is stopping, and nothing of this was stored. Send it again in a moment."

Answer: TypeAlias = Outcome | Exception


class _Waiting(NamedTuple):
    submission: Submission
    answer: asyncio.Future[Outcome]


class Ingest:
    """The queue and its thread, which starts with the first submission. For one event loop."""

    def __init__(self, database: Database, *, mask: Mask | None = None) -> None:
        """Store into `database`, masked by `mask` where there is one."""
        self._database = database
        self._mask = mask
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._waiting_records = 0
        self._thread: threading.Thread | None = None
        self._has_stopped = False
        # other servers write the same Postgres, so there nothing that was learnt stays true
        self._devices: dict[str, str] | None = {} if database.engine.dialect.name == "sqlite" else None

    async def store(self, submission: Submission) -> Outcome:
        """Return what became of a submission, once that is durable.

        Raises:
            ForbiddenError: the sender has sent for another device before.
            NoSpaceError: the disk is full; nothing of it was stored.
            UnavailableError: the database is busy, 20,000 records wait already, or the server is stopping.
        """
        if self._has_stopped:
            raise UnavailableError(STOPPING)
        if self._waiting_records >= MAX_WAITING_RECORDS:
            raise UnavailableError(
                f"{MAX_WAITING_RECORDS:,} records wait for the database, the most that may wait. Nothing of this was "
                "stored; send it again a little later."
            )
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(loop,), name="ingest", daemon=True)
            self._thread.start()
        waiting = _Waiting(submission, loop.create_future())
        self._waiting_records += len(submission.items)
        self._queue.put(waiting)
        return await waiting.answer

    async def stop(self) -> None:
        """Store what waits, and end the thread."""
        self._has_stopped = True
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        over = False
        while not over:
            group, over = self._next_group()
            answers = self._store([waiting.submission for waiting in group])
            loop.call_soon_threadsafe(self._conclude, group, answers)

    def _next_group(self) -> tuple[list[_Waiting], bool]:
        """Wait for a submission; return it with all others that wait, and whether these are the last."""
        group: list[_Waiting] = []
        records = 0
        following = self._queue.get()
        while following is not None:
            group.append(following)
            records += len(following.submission.items)
            if records >= GROUP_RECORDS:
                return group, False
            try:
                following = self._queue.get_nowait()
            except Empty:
                return group, False
        return group, True

    def _conclude(self, group: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
        for waiting, answer in zip(group, answers, strict=True):
            self._waiting_records -= len(waiting.submission.items)
            if waiting.answer.done():  # the reader has left
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    def _store(self, submissions: Sequence[Submission]) -> list[Answer]:
        """Store all in one transaction; where one of them is at fault, each in its own."""
        try:
            drafted = [(one, draft(one, self._database.seal, mask=self._mask)) for one in submissions]
            return self._store_drafted(drafted)
        except (NoSpaceError, UnavailableError) as error:
            return [error] * len(submissions)
        except Exception as error:
            return [error] if len(submissions) == 1 else [self._store([one])[0] for one in submissions]

    def _store_drafted(self, drafted: Sequence[tuple[Submission, list[Draft]]]) -> list[Answer]:
        if not drafted:
            return []
        devices = {} if self._devices is None else self._devices
        if len(devices) > KNOWN_DEVICES:
            devices.clear()
        with self._database.transaction() as connection:
            answers = store_together(connection, drafted, devices=devices)
        return list(answers)
