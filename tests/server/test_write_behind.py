from __future__ import annotations

import json
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from everswarm.errors import NoSpaceError, UnavailableError
from everswarm.server import database as database_module
from everswarm.server import write_behind
from everswarm.server.database import Database, UtcDateTime, to_json

tables = sa.MetaData()
authors = sa.Table("authors", tables, sa.Column("id", sa.Integer, primary_key=True))
notes = sa.Table(
    "notes",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("author", sa.ForeignKey("authors.id")),
    sa.Column("text", sa.Text),
    sa.Column("parts", sa.JSON),
    sa.Column("at", UtcDateTime),
)
missing = sa.Table("missing", tables, sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def opened(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(write_behind, "RETRY_SECONDS", 0.02)
    opened = Database(f"sqlite:///{tmp_path / 'test.sqlite'}")
    with opened.transaction() as connection:
        tables.create_all(connection, tables=[authors, notes])
    yield opened
    opened.close()


def ids(opened: Database) -> list[int]:
    with opened.read() as connection:
        return list(connection.execute(sa.select(notes.c.id).order_by(notes.c.id)).scalars())


def ids_on_disk(opened: Database) -> list[int]:
    """What another process would see: nothing waits for the queue here."""
    with closing(sqlite3.connect(str(opened.engine.url.database))) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM notes ORDER BY id")]


def eventually(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.005)


class Disk:
    """A disk that is full when told so, as SQLite sees it."""

    def __init__(self, opened: Database) -> None:
        self.is_full = False
        sa.event.listen(opened.engine, "begin", self._limit)

    def _limit(self, connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar() if self.is_full else 2**30
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


@pytest.fixture
def disk(opened):
    return Disk(opened)


LARGE = "x" * 100_000


def test_next_read_and_next_transaction_see_the_row(opened):
    opened.write_soon(notes, {"id": 1})
    assert ids(opened) == [1]
    opened.write_soon(notes, {"id": 2})
    with opened.transaction() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar() == 2


def test_row_is_stored_though_nobody_asks_for_it(opened):
    opened.write_soon(notes, {"id": 1})
    eventually(lambda: ids_on_disk(opened) == [1])


def test_rows_of_one_moment_share_a_transaction(opened):
    commits = []
    sa.event.listen(opened.engine, "commit", commits.append)
    for number in range(200):
        opened.write_soon(notes, {"id": number})
    assert ids(opened) == list(range(200))
    assert len(commits) < 20


def test_values_come_back_as_they_were(opened):
    row = {"id": 1, "text": "é\u2028\x00", "parts": [{"a": None}, "ü", 2**70, {"1": 1.5}], "at": datetime.now(UTC)}
    opened.write_soon(notes, row)
    with opened.read() as connection:
        stored = connection.execute(sa.select(notes)).one()
    assert {name: stored._mapping[name] for name in row} == row


def test_rows_of_one_table_may_have_different_columns(opened):
    for row in ({"id": 1, "text": "a"}, {"id": 2}, {"text": "c", "id": 3}):
        opened.write_soon(notes, row)
    with opened.read() as connection:
        assert connection.execute(sa.select(notes.c.text).order_by(notes.c.id)).scalars().all() == ["a", None, "c"]


def test_row_may_refer_to_one_that_was_queued_before_in_any_order_of_tables(opened):
    opened.write_soon(authors, {"id": 1})
    opened.write_soon(notes, {"id": 1, "author": 1})
    assert ids(opened) == [1]
    opened.write_soon(notes, {"id": 2, "author": 1})  # now notes come first
    opened.write_soon(authors, {"id": 2})
    opened.write_soon(notes, {"id": 3, "author": 2})
    assert ids(opened) == [1, 2, 3]


def test_threads_lose_nothing_and_see_their_own_rows(opened):
    unseen = []

    def work(start: int) -> None:
        for number in range(start, start + 100):
            opened.write_soon(notes, {"id": number})
            if number % 10 == 0 and number not in ids(opened):
                unseen.append(number)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids(opened) == list(range(400))
    assert unseen == []


def test_close_stores_what_waits_and_the_next_row_starts_again(opened):
    for number in (1, 2):
        opened.write_soon(notes, {"id": number})
        opened.close()
        assert ids_on_disk(opened) == list(range(1, number + 1))
    assert "write-behind" not in {thread.name for thread in threading.enumerate()}


def test_what_was_read_survives_a_kill(tmp_path):
    program = (
        "import os, sqlalchemy as sa; from everswarm.server.database import Database\n"
        f"opened = Database('sqlite:///{tmp_path / 'x.sqlite'}')\n"
        "notes = sa.Table('notes', sa.MetaData(), sa.Column('id', sa.Integer, primary_key=True))\n"
        "with opened.transaction() as connection: notes.create(connection)\n"
        "for number in range(50): opened.write_soon(notes, {'id': number})\n"
        "with opened.read() as connection: pass\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    with closing(sqlite3.connect(tmp_path / "x.sqlite")) as connection:
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (50,)


def test_read_inside_a_transaction_does_not_wait_for_itself(opened):
    with opened.transaction():
        opened.write_soon(notes, {"id": 1})
        assert ids(opened) == []
    assert ids(opened) == [1]


# --- rows that can never be stored


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (notes, {"id": 1, "text": "secret"}),  # taken
        (notes, {"id": 5, "author": 7, "text": "secret"}),  # no such author
        (notes, {"id": 5, "text": object()}),
        (notes, {"id": 5, "text": "secret \ud800"}),
        (notes, {"id": 2**70, "text": "secret"}),
        (notes, {"id": 5, "text": "secret", "parts": {1, 2}}),
        (notes, {"id": 5, "text": "secret", "at": datetime(2026, 3, 1)}),  # noqa: DTZ001
        (notes, {"id": 5, "text": "secret", "at": "yesterday"}),
        (notes, {"id": 5, "words": "secret"}),
        (missing, {"id": 5}),
    ],
)
def test_row_that_can_never_be_stored_does_not_hold_up_others(opened, caplog, table, row):
    opened.write_soon(notes, {"id": 1})
    opened.write_soon(table, row)
    opened.write_soon(notes, {"id": 2})
    assert ids(opened) == [1, 2]
    assert opened.write_problem is None
    assert f"a row of {table.name!r} can never be stored and was dropped" in caplog.text
    assert "secret" not in caplog.text


# --- a database that cannot be written


def test_full_disk_is_told_and_rows_are_stored_when_there_is_space(opened, disk):
    disk.is_full = True
    opened.write_soon(notes, {"id": 1, "text": LARGE})
    eventually(lambda: isinstance(opened.write_problem, NoSpaceError))
    opened.write_soon(notes, {"id": 2})
    assert ids(opened) == []  # a read does not wait for what cannot be written
    disk.is_full = False
    eventually(lambda: opened.write_problem is None)
    assert ids(opened) == [1, 2]


def test_problem_is_logged_once(opened, disk, caplog):
    caplog.set_level(logging.WARNING)
    disk.is_full = True
    opened.write_soon(notes, {"id": 1, "text": LARGE})
    eventually(lambda: opened.write_problem is not None)
    time.sleep(0.1)  # a few more tries
    disk.is_full = False
    eventually(lambda: opened.write_problem is None)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "1 rows wait for the database, tried every second: The disk that holds" in said[0]
    assert said[1] == "the database can be written again"


def test_database_that_another_holds_is_tried_again(opened, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MILLISECONDS", 10)
    opened.engine.dispose()
    other = Database(opened.url)
    with other.transaction():
        opened.write_soon(notes, {"id": 1})
        assert ids(opened) == []
        assert isinstance(opened.write_problem, UnavailableError)
    eventually(lambda: opened.write_problem is None)
    assert ids(opened) == [1]
    other.close()


def test_too_many_waiting_rows_are_refused(opened, disk, monkeypatch):
    monkeypatch.setattr(write_behind, "MAX_PENDING_ROWS", 3)
    disk.is_full = True
    for number in range(3):
        opened.write_soon(notes, {"id": number, "text": LARGE})
    eventually(lambda: opened.write_problem is not None)
    with pytest.raises(UnavailableError, match=r"3 rows wait for the database.*disk.*is full"):
        opened.write_soon(notes, {"id": 3})
    disk.is_full = False
    eventually(lambda: opened.write_problem is None)
    opened.write_soon(notes, {"id": 3})
    assert ids(opened) == [0, 1, 2, 3]


def test_closing_on_a_full_disk_ends_and_says_what_was_lost(opened, disk, caplog):
    disk.is_full = True
    opened.write_soon(notes, {"id": 1, "text": LARGE})
    opened.close()
    assert "1 rows were lost" in caplog.text
    assert ids(opened) == []


# --- Postgres


@pytest.fixture
def on_postgres(postgres_url, monkeypatch):
    monkeypatch.setattr(write_behind, "RETRY_SECONDS", 0.02)
    opened = Database(postgres_url)
    with opened.transaction() as connection:
        tables.create_all(connection, tables=[authors, notes])
    yield opened
    opened.close()


@pytest.mark.postgres
def test_values_come_back_from_postgres_as_they_were(on_postgres):
    row = {"id": 1, "text": "é\u2028", "parts": [{"a": None}, "ü%s", 2**70], "at": datetime.now(UTC), "author": None}
    for number in (1, 2):  # the second statement is prepared
        on_postgres.write_soon(notes, row | {"id": number})
        with on_postgres.read() as connection:
            stored = connection.execute(sa.select(notes).where(notes.c.id == number)).one()
        assert dict(stored._mapping) == row | {"id": number}
    on_postgres.write_soon(authors, {"id": 3})
    on_postgres.write_soon(notes, {"id": 3, "author": 3})
    assert ids(on_postgres) == [1, 2, 3]


@pytest.mark.postgres
@pytest.mark.parametrize("row", [{"id": 1}, {"id": 5, "author": 7}, {"id": 2**40}, {"id": 5, "text": "a\x00"}])
async def test_row_that_postgres_refuses_does_not_hold_up_others(on_postgres, caplog, row):
    on_postgres.write_soon(notes, {"id": 1})
    on_postgres.write_soon(notes, row)
    on_postgres.write_soon(notes, {"id": 2})
    on_postgres.write_soon(notes, {"id": 3})
    assert ids(on_postgres) == [1, 2, 3]
    assert "can never be stored" in caplog.text


@pytest.mark.postgres
def test_rows_outlive_connections_that_postgres_ends(on_postgres):
    pids = []

    def end_before_commit(connection: sa.Connection) -> None:
        if not pids:
            pids.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
            with closing(on_postgres.engine.raw_connection()) as other:
                other.cursor().execute("SELECT pg_terminate_backend(%s)", pids)

    sa.event.listen(on_postgres.engine, "begin", end_before_commit)
    on_postgres.write_soon(notes, {"id": 1})
    eventually(lambda: pids and on_postgres.write_problem is None and ids(on_postgres) == [1])


# --- values

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, categories=None))
    | st.sampled_from(["null", "\ud800", "\u2028"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner),
)


@given(anything)
def test_json_means_what_the_standard_library_means(value):
    assert repr(json.loads(to_json(value))) == repr(json.loads(json.dumps(value)))


@pytest.mark.parametrize("value", [{1, 2}, datetime.now(UTC), [object()]])
def test_what_is_no_json_is_refused(value):
    with pytest.raises(TypeError):
        to_json(value)


@given(st.datetimes(timezones=st.timezones()))
def test_moments_are_stored_as_sqlalchemy_stores_them(value):
    dialect = sa.dialects.sqlite.dialect()
    ours, theirs = UtcDateTime().bind_processor(dialect), sa.DateTime().dialect_impl(dialect).bind_processor(dialect)
    try:
        in_utc = value.astimezone(UTC)
    except OverflowError:
        return  # before the year 1
    assert ours(value) == theirs(in_utc.replace(tzinfo=None))
