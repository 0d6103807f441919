from __future__ import annotations

from pathlib import Path

from everswarm.server.database import Database, metadata


def test_migrated_database_has_the_index_of_the_tables(database: Database, tmp_path: Path):
    migrated = Database(f"sqlite:///{tmp_path / 'migrated.sqlite'}")
    migrated.migrate()
    assert index_of(migrated) == index_of(database)
    assert len(index_of(migrated)) == 3
    with database.transaction() as connection:
        metadata.drop_all(connection)
    assert index_of(database) == []
    migrated.close()


def index_of(database: Database) -> list[str]:
    """Return the statements that made the full-text index and its triggers."""
    wanted = "SELECT sql FROM sqlite_master WHERE name = 'passage_words' OR type = 'trigger' ORDER BY name"
    with database.read() as connection:
        return list(connection.exec_driver_sql(wanted).scalars())
