"""Alembic's entry: compares or upgrades over the connection that the caller opened."""

from __future__ import annotations

from alembic import context

from everswarm.server.database import metadata
from everswarm.server.migrations.tables import is_compared, load_all_tables

load_all_tables()
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=lambda name, kind, _parents: is_compared(name, kind),
    render_as_batch=True,  # SQLite cannot alter a table in place
    user_module_prefix="database.",
)
with context.begin_transaction():
    context.run_migrations()
