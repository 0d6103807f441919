"""The server on a real Postgres: what differs from SQLite, the way of a question to a release, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.fakes.stage_results import result_of
from tests.fakes.upstream import FakeUpstream

from everswarm.errors import (
    BadRequestError,
    ConfigurationError,
    EverswarmError,
    MissingExtraError,
    NoSpaceError,
    UnavailableError,
)
from everswarm.processes import start_python_child, stop_child
from everswarm.schemas.job import WORKER_STAGES, JobDone, Lease, Spent
from everswarm.schemas.server import Scope
from everswarm.server import app as app_module
from everswarm.server import database as database_module
from everswarm.server.app import create_app
from everswarm.server.auth import create_key
from everswarm.server.cycles import jobs
from everswarm.server.cycles.service import CycleService
from everswarm.server.database import Database, UtcDateTime, insert_ignore, insert_new, metadata
from everswarm.server.feedback import import_file, judged_interactions, stats
from everswarm.server.migrations.tables import load_all_tables
from everswarm.server.registry.service import ArtifactStore
from everswarm.settings import EndpointSettings, Settings

pytestmark = pytest.mark.postgres

PATIENCE_SECONDS = 60.0
tables = sa.MetaData()
notes = sa.Table(
    "notes",
    tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(5), unique=True),
    sa.Column("at", UtcDateTime),
    sa.Column("content", sa.JSON),
)


@pytest.fixture
def database(postgres_database: Database) -> Database:
    return postgres_database


@pytest.fixture
def opened(postgres_url: str) -> Iterator[Database]:
    """A database with `notes` and nothing else."""
    opened = Database(postgres_url)
    with opened.transaction() as connection:
        tables.create_all(connection)
    yield opened
    opened.close()


def count(opened: Database) -> int:
    with opened.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(notes)).scalar_one()


def until(condition: Any) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)
    return found


# --- the schema


def test_two_processes_that_migrate_together_and_once_more_end_with_the_tables_of_the_rooms(postgres_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    program = "import sys; from everswarm.server.database import Database; Database(sys.argv[1]).migrate()"
    started = [
        subprocess.Popen([sys.executable, "-c", program, postgres_url], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    load_all_tables()
    database = Database(postgres_url)
    database.migrate()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


# --- transactions and values


def test_failed_transaction_leaves_nothing(opened: Database) -> None:
    with pytest.raises(ZeroDivisionError), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1})
        raise ZeroDivisionError
    assert count(opened) == 0


def test_write_inside_a_read_is_refused(opened: Database) -> None:
    with pytest.raises(sa.exc.InternalError, match="read-only transaction"), opened.read() as connection:
        connection.execute(notes.insert(), {"id": 1})
    with opened.transaction() as connection:  # the same pooled connection may write again
        connection.execute(notes.insert(), {"id": 1})
    assert count(opened) == 1


def test_reader_sees_the_state_at_its_start(opened: Database) -> None:
    with opened.read() as reader:
        reader.execute(sa.select(notes)).all()
        with opened.transaction() as writer:
            writer.execute(notes.insert(), {"id": 1})
        assert reader.execute(sa.select(notes)).all() == []
    assert count(opened) == 1


def test_insert_counts_and_names_only_new_rows(opened: Database) -> None:
    with opened.transaction() as connection:
        assert insert_ignore(connection, notes, []) == 0
        assert insert_ignore(connection, notes, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]) == 2
        again = [{"id": 1, "name": "c"}, {"id": 3, "name": "b"}, {"id": 4, "name": "d"}, {"id": 4, "name": "e"}]
        assert insert_ignore(connection, notes, again) == 1
        many = [{"id": number, "name": str(number)} for number in range(3000)]
        assert insert_new(connection, notes.c.name, many) == {str(number) for number in range(3000)} - set("124")
    assert count(opened) == 3000


def test_moments_come_back_aware_and_in_utc_whatever_the_server_s_zone(opened: Database) -> None:
    at = datetime(2026, 3, 1, 1, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5)))
    with opened.transaction() as connection:
        connection.execute(sa.text("SET LOCAL TIME ZONE 'Asia/Kathmandu'"))
        connection.execute(notes.insert(), {"id": 1, "at": at})
        back = connection.execute(sa.select(notes.c.at)).scalar_one()
        later = connection.execute(sa.select(notes.c.id).where(notes.c.at > at - timedelta(seconds=1))).all()
    assert back == at
    assert back.tzinfo is UTC
    assert len(later) == 1


def test_naive_moment_is_refused(opened: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="has no time zone"), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1, "at": datetime(2026, 3, 1)})  # noqa: DTZ001


@pytest.mark.parametrize("content", [{"a": [1, None, "é"]}, None, [], "NUL \0 and half \ud800", {"\0": 2**80}])
def test_json_comes_back_as_it_was(opened: Database, content: Any) -> None:
    with opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1, "content": content})
    with opened.read() as connection:
        assert connection.execute(sa.select(notes.c.content)).scalar_one() == content


@pytest.mark.parametrize(("value", "why"), [({"name": "too long"}, "too long"), ({"name": "a\0"}, "NUL")])
def test_value_that_does_not_fit_is_the_sender_s_error_and_nothing_is_written(
    opened: Database, value: dict[str, Any], why: str
) -> None:
    with pytest.raises(BadRequestError, match=f"{why}.*Nothing of it was written"), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1})
        connection.execute(notes.insert(), {"id": 2, **value})
    assert count(opened) == 0


# --- trouble


def test_writer_that_waits_too_long_is_told_to_come_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MILLISECONDS", 20)
    opened = Database(postgres_url)
    with opened.transaction() as connection:
        tables.create_all(connection)
    second = Database(postgres_url)
    with opened.transaction() as holder:
        holder.execute(sa.text("LOCK TABLE notes"))
        with pytest.raises(UnavailableError, match=r"busy .* Send it again") as busy, second.transaction() as waiting:
            waiting.execute(notes.insert(), {"id": 1})
    second.close()
    opened.close()
    assert busy.value.retry_after_seconds


def test_full_disk_is_no_space_error(opened: Database) -> None:
    full = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    with pytest.raises(NoSpaceError, match="nothing of this request was written"), opened.transaction() as connection:
        connection.execute(notes.insert(), {"id": 1})
        connection.execute(sa.text(full))
    assert count(opened) == 0


def test_lost_connection_is_said_once_and_the_next_request_has_another(opened: Database) -> None:
    with pytest.raises(UnavailableError, match="ended the connection: terminating"), opened.transaction() as connection:
        own = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
        with opened.engine.connect() as other:
            other.execute(sa.text(f"SELECT pg_terminate_backend({own}, 10000)"))
        connection.execute(notes.insert(), {"id": 1})
    assert count(opened) == 0


def test_connections_that_died_in_the_pool_are_replaced_unseen(opened: Database) -> None:
    assert count(opened) == 0
    other = Database(opened.url)
    with other.read() as connection:
        others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        connection.execute(sa.text(f"{others} AND datname = current_database()"))
    other.close()
    assert count(opened) == 0


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"password": "hunter2"}, ConfigurationError, "password authentication failed for user"),
        ({"username": "nobody"}, ConfigurationError, "password authentication failed for user"),
        ({"database": "nope"}, ConfigurationError, 'database "nope" does not exist'),
        ({"query": {"sslmode": "require"}}, ConfigurationError, "SSL"),
        ({"query": {"colour": "red"}}, ConfigurationError, "invalid connection option"),
        ({"port": 1}, UnavailableError, "Connection refused"),
        ({"host": "127.0.0.2", "port": 1}, UnavailableError, "Connection refused"),
    ],
)
def test_database_that_lets_us_not_in_is_named_without_the_password(
    postgres_url: str, change: dict[str, Any], kind: type[EverswarmError], said: str
) -> None:
    url = sa.make_url(postgres_url).set(**change)
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(kind, match=f"{said}.*EVERSWARM_DATABASE_URL") as refused:
        database.migrate()
    assert f"'{url.database}' on {url.host}:{url.port} as {url.username}" in str(refused.value)
    assert str(url.password) not in str(refused.value)


@pytest.mark.parametrize("start", ["postgres", "postgresql", "postgresql+psycopg"])
def test_url_may_be_written_in_the_usual_ways(postgres_url: str, start: str) -> None:
    database = Database(postgres_url.replace("postgresql+psycopg", start))
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    database.close()


# --- the way of a question, over HTTP


@pytest.fixture
def client(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)
    with FakeUpstream(answer="a NUL\0 and half \ud800") as upstream:
        endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model")
        settings = Settings(home=tmp_path / "home", database_url=database.url, endpoints=[endpoint])
        with TestClient(create_app(settings)) as client:
            key = create_key(database, scope=Scope.ADMIN, label="ann").key
            client.headers["Authorization"] = f"Bearer {key}"
            yield client


def test_question_answer_judgement_import_and_device_are_stored(
    client: TestClient, database: Database, tmp_path: Path
) -> None:
    asked = {"model": "primary", "messages": [{"role": "user", "content": "a NUL\0"}]}
    answered = client.post("/v1/chat/completions", json=asked)
    assert answered.status_code == 200, answered.text
    interaction_id = answered.json()["id"]
    judged = {"interaction_id": interaction_id, "rating": 2, "correction": "NUL\0 here", "consent": True}
    assert client.post("/api/feedback", json=judged).status_code < 300
    (shown,) = client.get("/api/interactions").json()
    assert (shown["id"], shown["response"]) == (interaction_id, "a NUL and half ?")

    line = {"id": "i1", "device_id": "d", "timestamp": 1_770_000_000_000, "response": "a\0b", "rating": 5}
    line |= {"messages": [{"role": "user", "content": "q"}], "model": "m\0", "consent": True}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line) + "\n")
    assert [import_file(database, tmp_path / "lines.jsonl").stored for _ in range(2)] == [1, 0]
    batch = {"device_id": "phone", "timestamp": 1_770_000_000_000, "interactions": [{**line, "id": "i2"}]}
    batch["interactions"][0].pop("device_id")  # type: ignore[attr-defined]
    assert client.post("/api/training/feedback", json=batch).json()["stored"] == 1

    enrolment = {"device_id": "phone", "name": "my phone", "client_version": "0.1.0"}
    assert client.post("/api/devices", json=enrolment).status_code < 300
    assert client.get("/api/models/mobile/latest", params={"device_id": "phone"}).status_code == 200
    overview = client.get("/api/overview").json()
    assert (overview["interactions"], overview["judged"], overview["devices"]) == (3, 3, 1)
    counted = stats(database)
    assert (counted.usable, counted.mean_rating) == (3, 4.0)
    with database.read() as connection:
        records = {record.id: record for record in judged_interactions(connection)}
    assert records[interaction_id].correction == "NUL here"
    assert (records["i1"].response, records["i1"].model) == ("ab", "m")


def test_value_that_postgres_cannot_hold_is_a_422(client: TestClient) -> None:
    answered = client.post("/api/keys", json={"scope": "user", "label": "a\0b"})
    assert answered.status_code == 422
    assert "cannot hold a value of this request" in answered.json()["detail"]


# --- the durable cycle


def start_cycles(database: Database, home: Path) -> CycleService:
    settings = Settings(home=home)
    service = CycleService(database, ArtifactStore(settings.artifacts_root, database), settings)
    service.start()
    until(lambda: service.state != "starting")
    assert service.state == "ready"
    return service


def next_lease(service: CycleService) -> Lease:
    def lease() -> Lease | None:
        return jobs.lease_job(service.database, worker_id="w", stages=WORKER_STAGES, limits=service.settings.worker)

    found: Lease = until(lease)
    return found


def test_cycle_goes_on_after_a_restart_and_ends_with_a_release(database: Database, tmp_path: Path) -> None:
    lines = [
        {
            "id": f"i{number}", "device_id": f"user{number % 5}", "timestamp": 1_770_000_000_000 + number,
            "messages": [{"role": "user", "content": f"question {number}"}], "response": "no", "model": "m",
            "correction": "yes", "consent": True,
        }
        for number in range(30)
    ]  # fmt: skip
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    import_file(database, tmp_path / "lines.jsonl")
    service = start_cycles(database, tmp_path / "home")
    cycle = service.request_cycle(service.defaults(), trigger="manual")
    for stage in WORKER_STAGES:
        lease = next_lease(service)
        assert lease.job.stage == stage
        if stage is WORKER_STAGES[2]:
            service.stop()
            service = start_cycles(database, tmp_path / "home")
        jobs.finish(database, lease.job.id, JobDone(token=lease.token, result=result_of(stage), spent=Spent()))
    done = until(lambda: found if (found := service.cycle(cycle.id)).state != "running" else None)
    service.stop()
    assert (done.state, [stage.state for stage in done.stages]) == ("released", ["done"] * 7)
    assert not (tmp_path / "home" / "cycles.sqlite").exists()
    with database.read() as connection:
        assert sa.inspect(connection).has_table("workflow_status", schema="dbos")


# --- the command


def serve(home: Path, database_url: str, program: str = "") -> subprocess.Popen[str]:
    program = f"{program}\nimport sys; sys.argv[1:] = ['serve', '--no-worker', '--port', '0', '--home', {str(home)!r}]"
    home.mkdir(exist_ok=True)
    return start_python_child(
        ["-c", f"{program}\nfrom everswarm.cli.main import main; main()"],
        environment={
            "EVERSWARM_DATABASE_URL": database_url,
            "EVERSWARM_ENGINE__ENABLED": "false",
            "EVERSWARM_CONFIG": os.devnull,
            "COLUMNS": "1000",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_serve_keeps_its_state_in_postgres(database: Database, tmp_path: Path) -> None:
    child = serve(tmp_path / "home", database.url)
    try:
        url = json.loads(until(lambda: read_if_there(tmp_path / "home" / "server.json")))["url"]
        until(lambda: is_healthy(url))
        assert stats_of_keys(database) >= 3  # the first admin key, and those of the commands and the worker
    finally:
        assert stop_child(child, grace_seconds=20.0) == 0
    assert not (tmp_path / "home" / "everswarm.sqlite").exists()


def read_if_there(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health").status_code == 200
    except httpx.HTTPError:
        return False


def stats_of_keys(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM keys")).scalar_one())


@pytest.mark.parametrize(
    ("change", "program", "said"),
    [
        ({"password": "hunter2"}, "", "cannot be used: password authentication failed"),
        ({"port": 1}, "", "does not answer: "),
        ({}, "import sys; sys.modules['psycopg'] = None", "needs the 'postgres' extra. Install it with: pip install"),
    ],
)
def test_serve_says_why_it_cannot_start_and_never_the_password(
    postgres_url: str, tmp_path: Path, change: dict[str, Any], program: str, said: str
) -> None:
    url = sa.make_url(postgres_url).set(**change)
    child = serve(tmp_path / "home", url.render_as_string(hide_password=False), program)
    output = child.communicate(timeout=PATIENCE_SECONDS)[0]
    assert child.returncode in {1, 2}
    assert said in " ".join(output.split())
    assert "Traceback" not in output
    assert str(url.password) not in output


def test_driver_that_is_missing_is_an_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"everswarm\[postgres\]"):
        Database("postgresql://ann:secret@127.0.0.1/x")


@pytest.mark.parametrize("url", ["mysql://ann:secret@127.0.0.1/x", "postgresql+asyncpg://ann:secret@127.0.0.1/x"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"'x' on 127.0.0.1 as ann cannot be used: .* is neither") as refused:
        Database(url)
    assert "secret" not in str(refused.value)


def test_text_that_is_no_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError, match="EVERSWARM_DATABASE_URL is not a URL") as refused:
        Database("ann:secret")
    assert "secret" not in str(refused.value)


# --- the server of these tests


def test_server_of_killed_tests_leaves_nothing_behind() -> None:
    program = (
        "import os; from tests.postgres_server import PostgresServer, find_binaries; "
        "server = PostgresServer(find_binaries()); print(server.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    folder = Path(told.stdout.strip())
    assert folder.name.startswith("everswarm-postgres-"), told.stderr
    until(lambda: not folder.exists())
