from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select

from everswarm.errors import ForbiddenError, NoSpaceError, UnavailableError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.server import database as database_module
from everswarm.server.auth import Principal, create_key, revoke_key
from everswarm.server.database import Database, metadata
from everswarm.server.feedback import ingest as ingest_module
from everswarm.server.feedback import store_batch
from everswarm.server.feedback.drafting import FEEDBACK_COLUMNS, INTERACTION_COLUMNS, Incoming, Submission
from everswarm.server.feedback.ingest import Ingest
from everswarm.server.feedback.scrubbing import text_mask
from everswarm.server.feedback.storing import Outcome
from everswarm.server.feedback.tables import erased, feedback, interactions
from everswarm.server.migrations.tables import load_all_tables
from everswarm.settings import FeedbackSettings

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

on_both_databases = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
)


def record(id_: str = "item-1", **values: Any) -> JudgedInteraction:
    said = {"device_id": "dev-1", "timestamp": MOMENT, "messages": QUESTION, "response": "5", "correction": "4"}
    return JudgedInteraction.model_validate({"id": id_, **said, **values})


def submission(
    *records: JudgedInteraction, device: str = "dev-1", sender: str = "key-1", size_bytes: int = 0
) -> Submission:
    items = [Incoming(one, device, one.timestamp) for one in records]
    return Submission(
        items, source="device", sender=sender, sender_label="a phone", only_device=device, size_bytes=size_bytes
    )


def rows(database: Database, table: Any = interactions) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(table).order_by(table.c.id)))


@pytest.fixture
async def ingest(database: Database) -> AsyncIterator[Ingest]:
    opened = Ingest(database)
    yield opened
    await opened.stop()


@contextmanager
def writer_busy(database: Database) -> Iterator[None]:
    """Hold the write lock of SQLite, so that what is submitted meanwhile waits."""
    holds, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with database.transaction():
            holds.set()
            may_go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait(30)
    try:
        yield
    finally:
        may_go.set()
        thread.join()


# --- one writer, groups


@on_both_databases
async def test_answer_comes_after_the_commit(ingest: Ingest, database: Database):
    assert await ingest.store(submission(record())) == Outcome(1)
    (found,) = rows(database)
    assert (found.user, found.sender, found.source, found.created_at) == ("dev-1", "key-1", "device", MOMENT)
    assert (found.messages, found.response, found.state) == (QUESTION, "5", "complete")


async def test_all_that_waits_goes_into_one_transaction(
    ingest: Ingest, database: Database, monkeypatch: pytest.MonkeyPatch
):
    groups: list[int] = []
    store = ingest_module.store_together

    def counted(connection: Any, drafted: Any, **options: Any) -> Any:
        groups.append(len(drafted))
        return store(connection, drafted, **options)

    monkeypatch.setattr(ingest_module, "store_together", counted)
    with writer_busy(database):
        first = asyncio.create_task(ingest.store(submission(record("first"))))
        await asyncio.sleep(0.05)
        others = [
            asyncio.create_task(ingest.store(submission(record(f"i-{n}"), device=f"dev-{n}", sender=f"key-{n}")))
            for n in range(1, 21)
        ]
        await asyncio.sleep(0.05)
    assert await asyncio.gather(first, *others) == [Outcome(1)] * 21
    assert sum(groups) == 21 and len(groups) <= 3
    assert len(rows(database)) == len(rows(database, feedback)) == 21


@on_both_databases
async def test_refused_submission_does_not_sink_the_others(ingest: Ingest, database: Database):
    assert await ingest.store(submission(record("a"))) == Outcome(1)
    wanted = [
        submission(record("b"), device="dev-2"),  # the key of dev-1
        submission(record("c"), sender="key-2", device="dev-2"),
        submission(record("d")),
    ]
    found = await asyncio.gather(*map(ingest.store, wanted), return_exceptions=True)
    assert isinstance(found[0], ForbiddenError)
    assert "'dev-1'" in str(found[0]) and "keys create" in str(found[0])
    assert found[1:] == [Outcome(1), Outcome(1)]
    assert [row.id for row in rows(database)] == ["a", "c", "d"]


async def test_key_that_sends_for_two_devices_at_once_is_refused_one(ingest: Ingest, database: Database):
    with writer_busy(database):
        wanted = [submission(record("a")), submission(record("b"), device="dev-2")]
        tasks = [asyncio.create_task(ingest.store(one)) for one in wanted]
        await asyncio.sleep(0.05)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0] == Outcome(1) and isinstance(found[1], ForbiddenError)


async def test_key_may_send_for_another_device_once_all_of_the_first_is_erased(ingest: Ingest, database: Database):
    await ingest.store(submission(record("a")))
    with database.transaction() as connection:
        connection.execute(feedback.delete())
        connection.execute(interactions.delete())
    assert await ingest.store(submission(record("b"), device="dev-2")) == Outcome(1)
    with pytest.raises(ForbiddenError):
        await ingest.store(submission(record("c"), device="dev-1"))


async def test_one_id_in_two_submissions_of_one_group_is_stored_once(ingest: Ingest, database: Database):
    with writer_busy(database):
        wanted = [submission(record("a"), record("a")), submission(record("b"), record("a", response="x"))]
        tasks = [asyncio.create_task(ingest.store(one)) for one in wanted]
        await asyncio.sleep(0.05)
    assert await asyncio.gather(*tasks) == [Outcome(1, 1), Outcome(1, 0, (1,))]
    assert {row.id: row.response for row in rows(database)} == {"a": "5", "b": "5"}


async def test_fault_of_one_submission_is_its_own(database: Database):
    def mask(text: str) -> str:
        if text == "odd":
            raise RuntimeError("cannot be masked")
        return text

    masked = opened_again(database, mask)
    ingest = Ingest(masked)
    with writer_busy(database):
        wanted = [record("x"), record("a"), record("b", response="odd"), record("c")]
        tasks = [asyncio.create_task(ingest.store(submission(one))) for one in wanted]
        await asyncio.sleep(0.05)
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await ingest.stop()
    masked.close()
    assert [str(one) for one in found if isinstance(one, Exception)] == ["cannot be masked"]
    assert [row.id for row in rows(database)] == ["a", "c", "x"]


# --- whose a device's id is


def key_sender(database: Database) -> tuple[str, str]:
    """Make a device's key; return its id, and the name of its sender."""
    made = create_key(database, scope=Scope.DEVICE, label="a phone")
    return made.id, Principal(key_id=made.id, scope=Scope.DEVICE, label=made.label).user


@on_both_databases
async def test_device_id_belongs_to_its_first_sender_as_long_as_that_key_is_valid(ingest: Ingest, database: Database):
    (first_id, first), (_, second) = key_sender(database), key_sender(database)
    assert await ingest.store(submission(record("a"), sender=first)) == Outcome(1)
    with pytest.raises(ForbiddenError) as refused:
        await ingest.store(submission(record("b"), sender=second))
    assert str(refused.value) == (
        "The device id 'dev-1' belongs to another key. Choose another id for this device, or have that key revoked: "
        "everswarm keys revoke."
    )
    assert await ingest.store(submission(record("c"), sender=first)) == Outcome(1)
    revoke_key(database, first_id)
    assert await ingest.store(submission(record("b"), sender=second)) == Outcome(1)
    assert [(row.id, row.sender) for row in rows(database)] == [("a", first), ("b", second), ("c", first)]


@on_both_databases
async def test_device_id_of_two_keys_at_once_is_of_one(ingest: Ingest, database: Database):
    wanted = [submission(record(id_), sender=key_sender(database)[1]) for id_ in ("a", "b")]
    found = await asyncio.gather(*map(ingest.store, wanted), return_exceptions=True)
    assert found[0] == Outcome(1) and isinstance(found[1], ForbiddenError)


async def test_records_that_an_admin_or_a_file_brings_take_no_device_its_id(ingest: Ingest, database: Database):
    made = create_key(database, scope=Scope.ADMIN, label="admin")
    admin = Principal(key_id=made.id, scope=Scope.ADMIN, label="admin").user
    brought = [Incoming(record("a"), "dev-1", MOMENT)]
    await ingest.store(Submission(brought, source="device", sender=admin))
    store_batch(database, [record("b")], source="import")
    _, first = key_sender(database)
    assert await ingest.store(submission(record("c"), sender=first)) == Outcome(1)
    again = [Incoming(record("d"), "dev-1", MOMENT)]
    assert await ingest.store(Submission(again, source="device", sender=admin)) == Outcome(1)


async def test_device_id_that_was_given_away_after_an_erasure_is_no_longer_the_first_senders(
    ingest: Ingest, database: Database
):
    (_, first), (_, second) = key_sender(database), key_sender(database)
    await ingest.store(submission(record("a"), sender=first))
    with database.transaction() as connection:
        connection.execute(feedback.delete())
        connection.execute(interactions.delete())
    assert await ingest.store(submission(record("b"), sender=second)) == Outcome(1)
    with pytest.raises(ForbiddenError, match="belongs to another key"):
        await ingest.store(submission(record("c"), sender=first))


# --- when it cannot be stored


async def test_full_disk_is_told_to_all_that_wait_and_nothing_is_stored(ingest: Ingest, database: Database):
    database.engine.dispose()
    pages = sqlite3.connect(str(database.engine.url.database)).execute("PRAGMA page_count").fetchone()[0]
    event.listen(database.engine, "connect", lambda raw, _: raw.execute(f"PRAGMA max_page_count={pages + 4}"))
    long = [record(f"i-{number}", response="x" * 50_000) for number in range(4)]
    found = await asyncio.gather(*[ingest.store(submission(one)) for one in long], return_exceptions=True)
    assert {type(one) for one in found} == {NoSpaceError}
    assert rows(database) == []
    assert await ingest.store(submission(record("short"))) == Outcome(1)


async def test_locked_database_is_a_503_to_all_that_wait_and_the_next_try_works(
    ingest: Ingest, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MILLISECONDS", 20)
    database.engine.dispose()
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    wanted = [submission(record("a")), submission(record("b"))]
    found = await asyncio.gather(*map(ingest.store, wanted), return_exceptions=True)
    assert {type(one) for one in found} == {UnavailableError}
    other.execute("ROLLBACK")
    other.close()
    assert await asyncio.gather(*map(ingest.store, wanted)) == [Outcome(1), Outcome(1)]


async def test_too_much_that_waits_is_refused(ingest: Ingest, database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingest_module, "MAX_WAITING_RECORDS", 2)
    with writer_busy(database):
        tasks = [asyncio.create_task(ingest.store(submission(record(id_)))) for id_ in ("a", "b")]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="2 records wait"):
            await ingest.store(submission(record("c")))
    assert await asyncio.gather(*tasks) == [Outcome(1)] * 2
    assert await ingest.store(submission(record("c"))) == Outcome(1)


async def test_too_many_bytes_that_wait_are_refused(
    ingest: Ingest, database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest_module, "MAX_WAITING_BYTES", 2_000_000)
    with writer_busy(database):
        tasks = [asyncio.create_task(ingest.store(submission(record(id_), size_bytes=1_000_000))) for id_ in ("a", "b")]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="the most is 2 MB"):
            await ingest.store(submission(record("c"), size_bytes=1))
    assert await asyncio.gather(*tasks) == [Outcome(1)] * 2
    alone = submission(record("c"), size_bytes=2_000_001)  # whoever allows such bodies gets them stored, one by one
    assert await ingest.store(alone) == Outcome(1)


async def test_group_is_closed_by_its_bytes(ingest: Ingest, database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ingest_module, "GROUP_BYTES", 200)
    groups: list[int] = []
    store = ingest_module.store_together

    def counted(connection: Any, drafted: Any, **options: Any) -> Any:
        groups.append(len(drafted))
        return store(connection, drafted, **options)

    monkeypatch.setattr(ingest_module, "store_together", counted)
    with writer_busy(database):
        wanted = [submission(record(f"i-{number}"), size_bytes=100) for number in range(9)]
        tasks = [asyncio.create_task(ingest.store(one)) for one in wanted]
        await asyncio.sleep(0.05)
    assert await asyncio.gather(*tasks) == [Outcome(1)] * 9
    assert sum(groups) == 9 and max(groups) == 2


async def test_stop_stores_what_waits_and_takes_nothing_more(ingest: Ingest, database: Database):
    with writer_busy(database):
        tasks = [asyncio.create_task(ingest.store(submission(record(f"i-{number}")))) for number in range(9)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(ingest.stop())
        await asyncio.sleep(0)
    await stopping
    assert await asyncio.gather(*tasks) == [Outcome(1)] * 9
    with pytest.raises(UnavailableError, match="stopping"):
        await ingest.store(submission(record("late")))
    assert len(rows(database)) == 9


async def test_reader_that_leaves_does_not_disturb(ingest: Ingest, database: Database):
    with writer_busy(database):
        tasks = [asyncio.create_task(ingest.store(submission(record(id_)))) for id_ in ("a", "b")]
        await asyncio.sleep(0)
        tasks[0].cancel()
    assert await tasks[1] == Outcome(1)
    assert [row.id for row in rows(database)] == ["a", "b"]


# --- what is stored


def test_values_are_in_the_order_of_the_tables():
    for table, columns in ((interactions, INTERACTION_COLUMNS), (feedback, FEEDBACK_COLUMNS)):
        assert [column.name for column in table.columns if column.name in columns] == list(columns)


@on_both_databases
async def test_every_field_is_stored(ingest: Ingest, database: Database):
    said: dict[str, Any] = {
        "rating": 2,
        "comment": "no",
        "liked": False,
        "better_than": ["3", "7"],
        "regenerated": True,
        "copied": True,
        "judge_score": 0.25,
        "consent": True,
    }
    await ingest.store(submission(record(**said, language="pt-BR", model="tiny", keep_days=10)))
    (asked,), (judged,) = rows(database), rows(database, feedback)
    assert (asked.language, asked.model, asked.expires_at) == ("pt-BR", "tiny", MOMENT + timedelta(days=10))
    assert {name: judged._mapping[name] for name in said} == said
    assert (judged.correction, judged.author, judged.created_at) == ("4", "person", MOMENT)


@on_both_databases
@pytest.mark.parametrize(
    "weak", [{"regenerated": True}, {"copied": True}, {"liked": False}, {"judge_score": 0.0}, {"better_than": ["x"]}]
)
async def test_weak_signal_alone_is_a_judgement(ingest: Ingest, database: Database, weak: dict[str, Any]):
    await ingest.store(submission(record("a", correction=None, **weak), record("b", correction=None)))
    assert [row.interaction_id for row in rows(database, feedback)] == ["a"]


async def test_end_of_time_is_a_time(ingest: Ingest, database: Database):
    late = [Incoming(record("a", keep_days=36_500), "dev-1", datetime(9990, 1, 1, tzinfo=UTC))]
    await ingest.store(Submission(late, source="import"))
    assert rows(database)[0].expires_at.year == 9999


@on_both_databases
async def test_long_id_has_a_judgement_that_is_stored_once_and_that_no_record_can_take(
    ingest: Ingest, database: Database
):
    long = [record("x" * 200), record("x" * 199)]
    assert await ingest.store(submission(*long)) == Outcome(2)
    assert await ingest.store(submission(*long)) == Outcome(0, 2)
    ids = [row.id for row in rows(database, feedback)]
    assert len(set(ids)) == 2 and all(id_.startswith("~") and len(id_) == 36 for id_ in ids)


@on_both_databases
async def test_erased_ids_do_not_come_back(ingest: Ingest, database: Database):
    with database.transaction() as connection:
        row = {"fingerprint": database.seal.fingerprint(b"b"), "erased_at": MOMENT}
        connection.execute(insert(erased), [row])
    assert await ingest.store(submission(record("a"), record("b"))) == Outcome(1, 0, (), (1,))
    assert store_batch(database, [record("b"), record("a", response="x")], source="import") == (0, 0, ["a"], ["b"])
    assert [row.id for row in rows(database)] == ["a"]


def opened_again(database: Database, mask: Any) -> Database:
    """Open the same database with a mask."""
    return Database(
        database.engine.url.render_as_string(hide_password=False),
        key_file=Path(str(database.engine.url.database)).with_name("text.key"),
        mask=mask,
    )


async def test_personal_data_is_masked_before_it_is_stored_and_known_again(database: Database):
    masked = opened_again(database, text_mask(FeedbackSettings(raw_text="none")))
    ingest = Ingest(masked)
    mail = "Write to ann@example.org"
    private = record(
        messages=[{"role": "user", "content": mail}],
        response=mail,
        correction="ann@example.org or ben@example.org",
        comment=mail,
        better_than=[mail],
    )
    assert await ingest.store(submission(private)) == Outcome(1)
    assert await ingest.store(submission(private)) == Outcome(0, 1)
    await ingest.stop()
    masked.close()
    (asked,), (judged,) = rows(database), rows(database, feedback)
    assert (asked.messages[0]["content"], asked.response) == ("Write to [EMAIL_1]",) * 2
    assert (judged.correction, judged.better_than) == ("[EMAIL_1] or [EMAIL_2]", ["Write to [EMAIL_1]"])


# --- once each


@pytest.fixture(scope="module")
def shared_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    load_all_tables()
    opened = Database(f"sqlite:///{Path(tmp_path_factory.mktemp('ingest')) / 'everswarm.sqlite'}")
    with opened.transaction() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()


_runs = itertools.count()


@settings(max_examples=60)
@given(st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=6), max_size=5))
def test_whatever_is_sent_how_often_each_id_is_stored_once_with_what_came_first(
    shared_database: Database, batches: list[list[tuple[int, int]]]
):
    run = next(_runs)
    first: dict[str, str] = {}
    for batch in batches:
        records = [record(f"r{run}-{number}", response=str(content)) for number, content in batch]
        stored, duplicates, conflicts, refused = store_batch(shared_database, records, source="import")
        new = {one.id for one in records} - first.keys()
        for one in records:
            first.setdefault(one.id, str(one.response))
        assert stored == len(new) and refused == []
        assert conflicts == [one.id for one in records if one.response != first[one.id]]
        assert stored + duplicates + len(conflicts) == len(records)
    held = {row.id: row.response for row in rows(shared_database) if row.id.startswith(f"r{run}-")}
    judged = [row.interaction_id for row in rows(shared_database, feedback) if row.id.startswith(f"r{run}-")]
    assert held == first and sorted(judged) == sorted(first)
