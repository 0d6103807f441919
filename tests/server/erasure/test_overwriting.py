"""On SQLite nothing of a text is left in the file, nor in its log."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.server.erasure.world import World

from everswarm.identifiers import new_id
from everswarm.schemas.document import DocumentCreate
from everswarm.server.database import Database
from everswarm.server.documents.service import add_document
from everswarm.server.erasure import erase
from everswarm.server.threads.service import append_turns


def test_the_words_are_overwritten_in_tables_index_and_log(tmp_path: Path, world: World, database: Database) -> None:
    add_document(database, "anna", DocumentCreate(title="t", text="xylophone quagmire " * 50))
    append_turns(
        database,
        user="anna",
        thread_id=new_id(),
        question="a zeppelin?",
        answer="a",
        interaction_id="anna-1",
        is_new=True,
    )
    assert b"xylophone" in _stored(tmp_path)
    erase(database, world.storage, user="anna")
    left = _stored(tmp_path)
    assert b"xylophone" not in left
    assert b"zeppelin" not in left
    with sqlite3.connect(tmp_path / "everswarm.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_other_transactions_are_as_quick_as_before(world: World, database: Database) -> None:
    world.asks("anna", "anna-1")
    with database.transaction() as connection:
        before = connection.exec_driver_sql("PRAGMA secure_delete").scalar_one()
    erase(database, world.storage, user="anna")
    with database.transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar_one() == before
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 30_000


def _stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("everswarm.sqlite*"))
