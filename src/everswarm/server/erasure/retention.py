"""Erasing what has become too old, by the wish of who asked or by `settings.feedback.keep_days`.

Rows go, and what quotes them in the results of evaluations. The files of earlier cycles, and of datasets without one,
that hold it stay: they go when somebody in them is erased by name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from everswarm.errors import EverswarmError
from everswarm.server.database import Database
from everswarm.server.erasure import repository
from everswarm.server.erasure.overwriting import empty_log, overwriting
from everswarm.server.erasure.service import begin_erasing, delete_erased_files
from everswarm.server.erasure.subject import Subject, ids_of, of_interactions, touched_by
from everswarm.server.registry.storage import open_storage
from everswarm.settings import Settings

INTERACTIONS_A_TRANSACTION = 500
FIRST_SECONDS = 60.0  # after the start
PAUSE_SECONDS = 3600.0

_log = logging.getLogger(__name__)


def expire(database: Database, now: datetime, keep_days: int, *, goes_on: Callable[[], bool] = lambda: True) -> int:
    """Erase interactions whose time has passed, with all that hangs on them; return how many.

    Args:
        database: where they are.
        now: the present moment.
        keep_days: older ones go, in a conversation when its last turn is as old; 0: only those that who asked wanted
            kept so long and no longer, with their whole conversation.
        goes_on: asked between two transactions of 500 interactions.
    """
    erased = 0
    while goes_on() and (count := _expire_some(database, now, keep_days)):
        erased += count
    if erased:
        empty_log(database)
    return erased


class Retention:
    """Runs `expire` an hour apart in a thread of its own, and finishes what an erasure was cut off from."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        *,
        first_seconds: float = FIRST_SECONDS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> None:
        """Nothing runs before `start`."""
        self._database = database
        self._settings = settings
        self._first_seconds, self._pause_seconds = first_seconds, pause_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; the first time is a minute away."""
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the transaction that runs; blocks for as long."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause = self._first_seconds
        while not self._stopping.wait(pause):
            pause = self._pause_seconds
            try:
                self._expire()
            except EverswarmError as error:  # a full disk, a database that is away: the next hour
                _log.warning("what is too old could not be erased: %s", error)
            except Exception:
                _log.exception("what is too old could not be erased")

    def _expire(self) -> None:
        keep_days = self._settings.feedback.keep_days
        count = expire(self._database, datetime.now(UTC), keep_days, goes_on=lambda: not self._stopping.is_set())
        if count:
            _log.info("%d interactions were too old and are erased", count)
        delete_erased_files(self._database, open_storage(self._settings.artifacts_root))


def _expire_some(database: Database, now: datetime, keep_days: int) -> int:
    with database.read() as connection:  # mostly there is nothing, and nobody needs to wait for that
        if not _due(connection, now, keep_days).ids:
            return 0
    with database.transaction() as connection, overwriting(connection):
        erased_at = begin_erasing(connection)
        due = _due(connection, now, keep_days)
        ids = ids_of(connection, due)
        touched = touched_by(connection, due, ids)
        repository.delete_interactions(connection, ids, now=erased_at)
        repository.mark_touched(connection, touched - set(ids), now=erased_at)
        repository.delete_quotations(connection, {*ids, *touched})
    return len(ids)


def _due(connection: Connection, now: datetime, keep_days: int) -> Subject:
    ids = repository.due_by_wish(connection, now, limit=INTERACTIONS_A_TRANSACTION)
    if ids:
        return of_interactions(connection, ids, whole_threads=True)
    if keep_days:
        ids = repository.due_by_age(connection, now - timedelta(days=keep_days), limit=INTERACTIONS_A_TRANSACTION)
    return of_interactions(connection, ids, whole_threads=False)
