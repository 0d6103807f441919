"""What the overview reads from the other rooms, in one consistent state."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from everswarm.errors import EverswarmError
from everswarm.schemas.job import Cycle
from everswarm.schemas.release import Release
from everswarm.server.cycles.repository import recent_cycles
from everswarm.server.database import Database
from everswarm.server.feedback.repository import FeedbackStats, count_all
from everswarm.server.fleet.repository import count_fleet, recent_releases

CYCLES_SHOWN = 5


class State(NamedTuple):
    """The numbers behind the overview."""

    feedback: FeedbackStats
    devices: int
    releases: int
    latest_release: Release | None
    cycles: list[Cycle]  # newest first


def read_state(connection: Connection) -> State:
    """Read everything that the overview shows."""
    devices, releases = count_fleet(connection)
    return State(
        feedback=count_all(connection),
        devices=devices,
        releases=releases,
        latest_release=next(iter(recent_releases(connection, 1)), None),
        cycles=recent_cycles(connection, CYCLES_SHOWN),
    )


def database_answers(database: Database) -> bool:
    """Say whether the database can be read."""
    try:
        with database.read() as connection:
            connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, EverswarmError):
        return False
    return True
