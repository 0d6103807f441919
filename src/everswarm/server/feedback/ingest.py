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
from everswarm.server.feedback.drafting import Draft, Submission, draft
from everswarm.server.feedback.senders import Claims
from everswarm.server.feedback.storing import Outcome, store_together

GROUP_RECORDS = 2_000  # after so many a transaction is closed, so that nobody else waits for long
GROUP_BYTES = 16_000_000  # or after so many, of the bodies
MAX_WAITING_RECORDS = 20_000
MAX_WAITING_BYTES = 64_000_000  # of the bodies; what was read from them takes several times as much
KNOWN_DEVICES = 50_000  # then what is known is forgotten, and asked of the database again
STOPPING = "The server is stopping, and nothing of this was stored. Send it again in a moment."

Answer: TypeAlias = Outcome | Exception


class _Waiting(NamedTuple):
    submission: Submission
    answer: asyncio.Future[Outcome]


class Ingest:
    """The queue and its thread, which starts with the first submission. For one event loop."""

    def __init__(self, database: Database) -> None:
        """Store into `database`."""
        self._database = database
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._waiting_records = 0
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._has_stopped = False
        # other servers write the same Postgres, so there nothing that was learnt stays true
        self._claims = Claims() if database.engine.dialect.name == "sqlite" else None

    async def store(self, submission: Submission) -> Outcome:
        """Return what became of a submission, once that is durable.

        Raises:
            ForbiddenError: the sender has sent for another device before, or the device is of another sender.
            NoSpaceError: the disk is full; nothing of it was stored.
            UnavailableError: the database is busy, too much waits for it already, or the server is stopping.
        """
        if self._has_stopped:
            raise UnavailableError(STOPPING)
        self._check_space(submission)
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(loop,), name="ingest", daemon=True)
            self._thread.start()
        waiting = _Waiting(submission, loop.create_future())
        self._waiting_records += len(submission.items)
        self._waiting_bytes += submission.size_bytes
        self._queue.put(waiting)
        return await waiting.answer

    def _check_space(self, submission: Submission) -> None:
        later = "Nothing of this was stored; send it again a little later."
        if self._waiting_records >= MAX_WAITING_RECORDS:
            raise UnavailableError(
                f"{MAX_WAITING_RECORDS:,} records wait for the database, the most that may wait. {later}"
            )
        # alone any body that the server takes may wait
        if self._waiting_bytes and self._waiting_bytes + submission.size_bytes > MAX_WAITING_BYTES:
            limit = f"{MAX_WAITING_BYTES // 1_000_000} MB"
            raise UnavailableError(f"Too many bytes wait for the database; the most is {limit}. {later}")

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
        records = size_bytes = 0
        following = self._queue.get()
        while following is not None:
            group.append(following)
            records += len(following.submission.items)
            size_bytes += following.submission.size_bytes
            if records >= GROUP_RECORDS or size_bytes >= GROUP_BYTES:
                return group, False
            try:
                following = self._queue.get_nowait()
            except Empty:
                return group, False
        return group, True

    def _conclude(self, group: Sequence[_Waiting], answers: Sequence[Answer]) -> None:
        for waiting, answer in zip(group, answers, strict=True):
            self._waiting_records -= len(waiting.submission.items)
            self._waiting_bytes -= waiting.submission.size_bytes
            if waiting.answer.done():  # the reader has left
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    def _store(self, submissions: Sequence[Submission]) -> list[Answer]:
        """Store all in one transaction; where one of them is at fault, each in its own."""
        try:
            drafted = [(one, draft(one, self._database.seal)) for one in submissions]
            return self._store_drafted(drafted)
        except (NoSpaceError, UnavailableError) as error:
            return [error] * len(submissions)
        except Exception as error:
            return [error] if len(submissions) == 1 else [self._store([one])[0] for one in submissions]

    def _store_drafted(self, drafted: Sequence[tuple[Submission, list[Draft]]]) -> list[Answer]:
        if not drafted:
            return []
        claims = Claims() if self._claims is None else self._claims
        if len(claims) > KNOWN_DEVICES:
            claims.clear()
        with self._database.transaction() as connection:
            answers = store_together(connection, drafted, claims=claims)
        return list(answers)
