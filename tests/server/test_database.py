from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from everswarm.errors import ConfigurationError, NoSpaceError, UnavailableError
from everswarm.server import database as database_module
from everswarm.server.database import Database, UtcDateTime, insert_ignore
from everswarm.server.home import HomeLock
from everswarm.server.migrations import upgrade
from everswarm.server.migrations.__main__ import write_revision
from everswarm.server.migrations.tables import is_compared, load_all_tables
from everswarm.server.migrations.upgrade import head_revision, upgrade_database

tables = sa.MetaData()
notes = sa.Table(
    "notes",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("text", sa.Text, unique=True),
    sa.Column("at", UtcDateTime),
)


@pytest.fixture
def opened(tmp_path: Path):
    opened = Database(f"sqlite:///{tmp_path / 'home' / 'test.sqlite'}")
    with opened.transaction() as connection:
        tables.create_all(connection)
    yield opened
    opened.close()


def count(opened: Database) -> int:
    with opened.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one()


def test_failed_transaction_leaves_nothing(opened):
    with pytest.raises(ZeroDivisionError), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1})
        raise ZeroDivisionError
    assert count(opened) == 0


def test_write_inside_a_read_is_refused(opened):
    with pytest.raises(OperationalError, match="readonly"), opened.read() as connection:
        connection.execute(notes.insert(), {"id": 1})
    with opened.transaction() as connection:  # the same pooled connection may write again
        connection.execute(notes.insert(), {"id": 1})
    assert count(opened) == 1


def test_sqlite_is_durable_and_checks_foreign_keys(opened):
    with opened.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_concurrent_writers_take_turns_and_lose_nothing(opened):
    def increment() -> None:
        for _ in range(25):
            with opened.transaction() as connection:
                highest = connection.execute(sa.select(sa.func.max(notes.c.id))).scalar() or 0
                connection.execute(notes.insert(), {"id": highest + 1})

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(opened) == 100


def test_reader_sees_the_state_at_its_start(opened):
    with opened.read() as reader:
        reader.execute(sa.select(notes)).all()
        with opened.transaction() as writer:
            writer.execute(notes.insert(), {"id": 1})
        assert reader.execute(sa.select(notes)).all() == []
    assert count(opened) == 1


def test_insert_ignore_counts_only_new_rows(opened):
    with opened.transaction() as connection:
        assert insert_ignore(connection, notes, []) == 0
        assert insert_ignore(connection, notes, [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]) == 2
        again = [{"id": 1, "text": "c"}, {"id": 3, "text": "b"}, {"id": 4, "text": "d"}, {"id": 4, "text": "e"}]
        assert insert_ignore(connection, notes, again) == 1
    assert count(opened) == 3


def test_moments_come_back_aware_and_in_utc(opened):
    at = datetime(2026, 3, 1, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    with opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1, "at": at})
        back = connection.execute(sa.select(notes.c.at)).scalar_one()
        later = connection.execute(sa.select(notes.c.id).where(notes.c.at > at - timedelta(seconds=1))).all()
    assert back == at
    assert back.tzinfo is UTC
    assert len(later) == 1


def test_naive_moment_is_refused(opened):
    with pytest.raises(sa.exc.StatementError, match="has no time zone"), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1, "at": datetime(2026, 3, 1)})  # noqa: DTZ001


def test_full_disk_is_no_space_error(opened):
    with opened.read() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    with pytest.raises(NoSpaceError, match="nothing of this request was written"), opened.transaction() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # the disk is full, as SQLite sees it
        connection.execute(notes.insert(), {"id": 1, "text": "x" * 100_000})
    opened.engine.dispose()
    assert count(opened) == 0


def test_database_that_stays_busy_is_unavailable(opened, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MILLISECONDS", 10)
    second = Database(opened.url)
    with (
        opened.transaction(),
        pytest.raises(UnavailableError, match="Send it again") as refused,
        second.transaction(),
    ):
        pass
    second.close()
    assert refused.value.retry_after_seconds


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_database_is_private(opened):
    path = Path(opened.engine.url.database)
    with opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1})
        modes = {stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_database_in_memory_is_refused(url):
    with pytest.raises(ConfigurationError, match="names no file"):
        Database(url)


def test_place_that_cannot_be_written_is_a_configuration_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="EVERSWARM_HOME"):
        Database(f"sqlite:///{tmp_path / 'file' / 'x.sqlite'}")


# --- migrations


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """A migrations folder of its own, with the real `env.py`."""
    folder = tmp_path / "history"
    (folder / "versions").mkdir(parents=True)
    for name in ("env.py", "script.py.mako"):
        (folder / name).write_text((upgrade.FOLDER / name).read_text())
    return folder


def add_revision(folder: Path, revision: str, down: str | None, statement: str) -> None:
    (folder / "versions" / f"{revision}.py").write_text(
        f"from alembic import op\nrevision = {revision!r}\ndown_revision = {down!r}\n"
        f"def upgrade():\n    op.execute({statement!r})\n"
    )


def test_new_database_gets_all_revisions(opened, history):
    add_revision(history, "0001", None, "CREATE TABLE one (id INTEGER PRIMARY KEY)")
    add_revision(history, "0002", "0001", "CREATE TABLE two (id INTEGER REFERENCES one)")
    upgrade_database(opened.engine, history)
    assert {"one", "two"} <= set(sa.inspect(opened.engine).get_table_names())
    assert head_revision(history) == "0002"


def test_failed_migration_changes_nothing(opened, history):
    add_revision(history, "0001", None, "CREATE TABLE one (id INTEGER)")
    add_revision(history, "0002", "0001", "CREATE TABLE one (id INTEGER)")
    with pytest.raises(OperationalError):
        upgrade_database(opened.engine, history)
    assert sa.inspect(opened.engine).get_table_names() == ["notes"]


def test_migration_may_rebuild_a_table_that_others_point_to(opened, history):
    add_revision(history, "0001", None, "CREATE TABLE one (id INTEGER PRIMARY KEY)")
    add_revision(history, "0002", "0001", "CREATE TABLE two (id INTEGER REFERENCES one ON DELETE CASCADE)")
    upgrade_database(opened.engine, history)
    with opened.transaction() as connection:
        connection.exec_driver_sql("INSERT INTO one VALUES (1)")
        connection.exec_driver_sql("INSERT INTO two VALUES (1)")
    add_revision(history, "0003", "0002", "DROP TABLE one")
    upgrade_database(opened.engine, history)
    with opened.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM two").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_database_of_a_newer_version_is_refused(opened, history):
    add_revision(history, "0001", None, "CREATE TABLE one (id INTEGER)")
    add_revision(history, "0002", "0001", "CREATE TABLE two (id INTEGER)")
    upgrade_database(opened.engine, history)
    (history / "versions" / "0002.py").unlink()
    with pytest.raises(ConfigurationError, match=r"'0002'.*knows up to '0001'.*newer everswarm"):
        upgrade_database(opened.engine, history)


def test_alembic_is_imported_only_when_there_is_work(tmp_path):
    Database(f"sqlite:///{tmp_path / 'x.sqlite'}").migrate()
    program = (
        "import sys; from everswarm.server.database import Database; "
        f"Database('sqlite:///{tmp_path / 'x.sqlite'}').migrate(); sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_written_revision_makes_exactly_the_tables_of_the_rooms(tmp_path, history):
    load_all_tables()
    write_revision("all tables", history)
    made = Database(f"sqlite:///{tmp_path / 'made.sqlite'}")
    upgrade_database(made.engine, history)
    assert differences(made) == []
    made.close()


def test_stored_revisions_lead_to_the_tables_of_the_rooms(tmp_path):
    load_all_tables()
    migrated = Database(f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    migrated.migrate()
    assert differences(migrated) == [], "run: python -m everswarm.server.migrations 'what changes'"
    migrated.close()


def differences(migrated: Database) -> list[object]:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with migrated.read() as connection:
        return compare_metadata(
            MigrationContext.configure(
                connection, opts={"include_name": lambda name, kind, _parents: is_compared(name, kind)}
            ),
            database_module.metadata,
        )


# --- home


def test_second_server_on_a_home_is_told_who_has_it(tmp_path):
    home = tmp_path / "home"
    with (
        HomeLock(home, address="http://127.0.0.1:8000"),
        pytest.raises(ConfigurationError, match=rf"the server at http://127\.0\.0\.1:8000 \(process {os.getpid()}\)"),
        HomeLock(home, address="http://127.0.0.1:9000"),
    ):
        pass
    with HomeLock(home, address="http://127.0.0.1:9000"):
        pass


def test_home_of_a_killed_server_is_free(tmp_path):
    program = (
        "import os; from pathlib import Path; from everswarm.server.home import HomeLock; "
        f"HomeLock(Path({str(tmp_path)!r}), address='x').__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    with HomeLock(tmp_path, address="y"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_home_is_private(tmp_path):
    with HomeLock(tmp_path / "home", address="x"):
        assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "home" / "server.lock").stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_folder_that_held_other_things_keeps_its_mode(tmp_path):
    (tmp_path / "other").write_text("")
    tmp_path.chmod(0o755)
    with HomeLock(tmp_path, address="x"):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
