"""Finds the tables of all rooms, so that a comparison with the database sees every one."""

from __future__ import annotations

import importlib
from pathlib import Path

_SEARCH_INDEXES = ("passage_words",)  # FTS5 tables of SQLite; each has tables of its own beside it, named after it


def load_all_tables() -> list[str]:
    """Import `tables.py` of every room, which puts its tables on `metadata`; return the module names."""
    server = Path(__file__).parent.parent
    names = [f"everswarm.server.{path.parent.name}.tables" for path in sorted(server.glob("*/tables.py"))]
    rooms = [name for name in names if name != f"{__package__}.tables"]
    for name in rooms:
        importlib.import_module(name)
    return rooms


def is_compared(name: str | None, kind: str) -> bool:
    """Say whether what the database has is described by `metadata`: Alembic's `include_name`."""
    return kind != "table" or not (name or "").startswith(_SEARCH_INDEXES)
