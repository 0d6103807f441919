"""`python -m everswarm.server.migrations TEXT`: write the revision that leads from the newest one to `tables.py`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from everswarm.server.database import Database
from everswarm.server.migrations.upgrade import FOLDER, head_revision


def write_revision(message: str, folder: Path = FOLDER) -> None:
    """Compare an empty database at the newest revision with the tables of the rooms, and write the difference."""
    from alembic import command
    from alembic.config import Config

    from everswarm.server.migrations.upgrade import upgrade_database

    with tempfile.TemporaryDirectory() as home:
        database = Database(f"sqlite:///{home}/empty.sqlite")
        upgrade_database(database.engine, folder)
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        with database.transaction() as connection:
            config.attributes["connection"] = connection
            number = len(list((folder / "versions").glob("*.py"))) + 1
            command.revision(config, message, autogenerate=True, rev_id=f"{number:04d}")
        database.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m everswarm.server.migrations 'what changes'")
    write_revision(sys.argv[1])
    print(f"newest revision: {head_revision()}")
