"""A real database for the tests of the rooms: SQLite, and for some modules Postgres too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from everswarm.server.database import Database, metadata
from everswarm.server.migrations.tables import load_all_tables

if TYPE_CHECKING:
    from tests.postgres_server import PostgresServer

ON_BOTH_DATABASES = {
    "test_documents",
    "test_feedback",
    "test_feedback_import",
    "test_fleet",
    "test_jobs",
    "test_review_routes",
    "test_reviews",
    "test_threads",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of these modules that takes a database on Postgres too."""
    if "database" in metafunc.fixturenames and metafunc.module.__name__.split(".")[-1] in ON_BOTH_DATABASES:
        metafunc.parametrize(
            "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
        )


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database with the tables of every room."""
    if getattr(request, "param", "sqlite") == "postgres":
        yield request.getfixturevalue("postgres_database")
        return
    load_all_tables()
    opened = Database(f"sqlite:///{tmp_path / 'everswarm.sqlite'}")
    with opened.transaction() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> str:
    """The name of a migrated database to copy: quicker than to migrate one for each test."""
    url = postgres_server.create_database()
    migrated = Database(url)
    migrated.migrate()
    migrated.close()
    return url.rsplit("/", 1)[1]


@pytest.fixture
def postgres_database(postgres_server: PostgresServer, postgres_template: str, tmp_path: Path) -> Iterator[Database]:
    """An empty Postgres database with the tables of every room."""
    url = postgres_server.create_database(postgres_template)
    opened = Database(url, key_file=tmp_path / "home" / "text.key")
    yield opened
    opened.close()
    postgres_server.drop_database(url)
