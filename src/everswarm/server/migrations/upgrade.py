"""Bring a stored schema to the newest revision. Imports Alembic, which is slow, only when there is work to do."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from everswarm.errors import ConfigurationError

FOLDER = Path(__file__).parent
POSTGRES_LOCK = 0x65737772  # any number that is always the same: servers that start together take turns
_REVISION = re.compile(r"^(revision|down_revision)\b[^=\n]*=\s*(.+)$", re.MULTILINE)


def head_revision(folder: Path = FOLDER) -> str | None:
    """Return the newest revision in `folder/versions`, read from the text of the files; None when there is none."""
    found: dict[str, set[str]] = {"revision": set(), "down_revision": set()}
    for path in (folder / "versions").glob("*.py"):
        for name, value in _REVISION.findall(path.read_text(encoding="utf-8")):
            found[name].update(re.findall(r"[\"']([^\"']+)[\"']", value))
    heads = found["revision"] - found["down_revision"]
    if len(heads) > 1:
        raise ConfigurationError(f"{folder / 'versions'} has several newest revisions: {', '.join(sorted(heads))}.")
    return heads.pop() if heads else None


def upgrade_database(engine: Engine, folder: Path = FOLDER) -> None:
    """Run the revisions of `folder` that `engine` lacks, all in one transaction.

    Raises:
        ConfigurationError: the database was made by a newer everswarm.
    """
    head = head_revision(folder)
    with engine.connect() as connection:
        if _stored_revision(connection) == head:
            return
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            _enforce_foreign_keys(connection, on=False)  # rebuilding a table would empty the tables that point to it
        try:
            with connection.execution_options(everswarm_write=True).begin():
                _upgrade(connection, head, folder)
        finally:
            if engine.dialect.name == "sqlite":
                _enforce_foreign_keys(connection, on=True)


def _stored_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _enforce_foreign_keys(connection: Connection, *, on: bool) -> None:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.cursor().execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")


def _upgrade(connection: Connection, head: str | None, folder: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": POSTGRES_LOCK})
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigurationError(
            f"The database is at revision {_stored_revision(connection)!r}, which this version of everswarm does not "
            f"know (it knows up to {head!r}). Install the newer everswarm that made it, or restore a backup."
        ) from error
