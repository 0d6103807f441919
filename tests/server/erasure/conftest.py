"""The world of one test: a database and a folder of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.erasure.world import World

from everswarm.server.database import Database

ON_BOTH_DATABASES = {"test_erasing_meanwhile", "test_erasure", "test_retention"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of these modules that takes a database on Postgres too."""
    if "database" in metafunc.fixturenames and metafunc.module.__name__.split(".")[-1] in ON_BOTH_DATABASES:
        metafunc.parametrize(
            "database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True
        )


@pytest.fixture
def world(database: Database, tmp_path: Path) -> World:
    """Nobody has asked anything yet."""
    return World(database, tmp_path / "artifacts")
