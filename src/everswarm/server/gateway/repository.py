"""The gateway's SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from everswarm.server.gateway.tables import usage


def insert_usage(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add one usage row."""
    connection.execute(insert(usage), [dict(row)])
