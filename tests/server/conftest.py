"""A real database for the tests of the rooms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everswarm.server.database import Database, metadata
from everswarm.server.migrations.tables import load_all_tables


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An empty SQLite database with the tables of every room."""
    load_all_tables()
    opened = Database(f"sqlite:///{tmp_path / 'everswarm.sqlite'}")
    with opened.transaction() as connection:
        metadata.create_all(connection)
    yield opened
    opened.close()
