"""The statements of the swarm. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select

from everswarm.server.feedback.tables import feedback, interactions

ROWS_A_FETCH = 500  # of a long result, so that it never lies in memory whole


def judged_answers(connection: Connection) -> Iterable[Row[Any]]:
    """Yield every judgement of an answer that one role gave in one call, by interaction, the oldest first.

    A strategy of several calls says nothing of one role, so its answers are left out; so are those of a model that was
    asked for by its full name, which has no role.
    """
    wanted = (
        select(
            interactions.c.id,
            interactions.c.user,
            interactions.c.role,
            interactions.c.messages,
            feedback.c.rating,
            feedback.c.correction.is_not(None).label("is_corrected"),
            feedback.c.consent,
            feedback.c.user.in_([interactions.c.user, func.coalesce(interactions.c.sender, interactions.c.user)]).label(
                "may_consent"
            ),
        )
        .join(feedback, feedback.c.interaction_id == interactions.c.id)
        .where(
            interactions.c.source == "web",
            interactions.c.state == "complete",
            interactions.c.role.is_not(None),
            or_(interactions.c.strategy.is_(None), interactions.c.strategy == "single"),
        )
        .order_by(interactions.c.created_at, interactions.c.id, feedback.c.created_at, feedback.c.id)
    )
    found: Iterable[Row[Any]] = connection.execute(wanted.execution_options(yield_per=ROWS_A_FETCH))
    return found
