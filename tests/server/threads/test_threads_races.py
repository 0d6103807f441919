"""Two at the same time on Postgres, where SQLite has one writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from everswarm.server.database import Database
from everswarm.server.feedback import NewInteraction, record_interaction
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.threads import append_turns, service
from everswarm.server.threads.tables import thread_turns

pytestmark = pytest.mark.postgres

ANN = "key-ann"
PATIENCE_SECONDS = 30.0


def answered_thread(database: Database) -> tuple[str, str]:
    thread_id = service.create_thread(database, user=ANN, title=None).id
    messages = [{"role": "user", "content": "q"}]
    id_ = record_interaction(database, NewInteraction(user=ANN, messages=messages, response="a", thread_id=thread_id))
    append_turns(database, user=ANN, thread_id=thread_id, question="q", answer="a", interaction_id=id_)
    return thread_id, id_


def until_it_waits(database: Database, call: Callable[[], object]) -> threading.Thread:
    """Begin `call` in a thread, and return when it waits for somebody's lock."""
    thread = threading.Thread(target=call)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with database.engine.connect() as connection:
        while not connection.execute(waiting).scalar():
            assert time.monotonic() < deadline
            assert thread.is_alive(), "it did not wait"
            time.sleep(0.005)
    return thread


def count(database: Database, table: sa.Table) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_judgement_that_is_given_while_its_thread_is_deleted_stays(postgres_database: Database):
    thread_id, id_ = answered_thread(postgres_database)
    judgement = {"id": "f", "interaction_id": id_, "user": ANN, "created_at": datetime.now(UTC), "consent": True}
    with postgres_database.engine.connect() as connection, connection.begin():
        connection.execute(feedback.insert().values(**judgement))
        deleting = until_it_waits(
            postgres_database, lambda: service.delete_thread(postgres_database, thread_id, user=ANN)
        )
    deleting.join(PATIENCE_SECONDS)
    assert [count(postgres_database, table) for table in (interactions, feedback, thread_turns)] == [1, 1, 0]


def test_answer_that_comes_while_its_thread_is_deleted_leaves_nothing(postgres_database: Database):
    thread_id, _ = answered_thread(postgres_database)

    def add() -> None:
        append_turns(postgres_database, user=ANN, thread_id=thread_id, question="q", answer="a", interaction_id="late")

    with postgres_database.transaction() as connection:
        service.repository.delete_thread(connection, thread_id)
        adding = until_it_waits(postgres_database, add)
    adding.join(PATIENCE_SECONDS)
    assert count(postgres_database, thread_turns) == 0
