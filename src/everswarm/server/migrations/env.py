"""Alembic's entry: compares or upgrades over the connection that the caller opened."""

from __future__ import annotations

from typing import Literal

from alembic import context

from everswarm.server.database import metadata
from everswarm.server.migrations.tables import is_compared, load_all_tables
from everswarm.server.sealing import SealedJson, SealedText


def written(kind: str, item: object, _context: object) -> str | Literal[False]:
    """Write a sealed column as what the database sees; False: as Alembic would."""
    return "sa.LargeBinary()" if kind == "type" and isinstance(item, SealedText | SealedJson) else False


load_all_tables()
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=lambda name, kind, _parents: is_compared(name, kind),
    render_as_batch=True,  # SQLite cannot alter a table in place
    render_item=written,
    user_module_prefix="database.",
)
with context.begin_transaction():
    context.run_migrations()
