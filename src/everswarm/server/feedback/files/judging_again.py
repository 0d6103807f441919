"""What a second import of a file of another program adds: the consent or the liking that was not given at the first."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, select

from everswarm.identifiers import new_id
from everswarm.server.feedback import repository
from everswarm.server.feedback.tables import feedback, interactions


def judge_again(connection: Connection, ids: Iterable[str], *, consent: bool, liked: bool | None) -> set[str]:
    """Add consent, or liking, to imported interactions that lack it; return the ids of those.

    Nobody may have judged them since: what a person said, a withdrawal above all, is not overruled by a file.
    """
    if not consent and liked is None:
        return set()
    rows = []
    for interaction_id, group in groupby(_judgements(connection, list(ids)), key=lambda row: row.id):
        found = list(group)
        row = found[0]
        new_liking = liked if row.liked is None else None
        judged = row.judged_at is not None  # without a judgement there is nothing that consent could be for
        lacks = (consent and judged and not row.consent) or new_liking is not None
        if lacks and len(found) == 1 and (not judged or row.judged_at <= row.created_at):
            rows.append(
                {
                    "id": new_id(),
                    "interaction_id": interaction_id,
                    "user": row.user,
                    "created_at": datetime.now(UTC),
                    "liked": new_liking,
                    "consent": consent or bool(row.consent),
                }
            )
    repository.insert_feedback(connection, rows)
    return {row["interaction_id"] for row in rows}


def _judgements(connection: Connection, ids: list[str]) -> list[Row[Any]]:
    wanted = (
        select(
            interactions.c.id,
            interactions.c.user,
            interactions.c.created_at,
            feedback.c.consent,
            feedback.c.liked,
            feedback.c.created_at.label("judged_at"),
        )
        .outerjoin(feedback, feedback.c.interaction_id == interactions.c.id)
        .where(interactions.c.id.in_(ids), interactions.c.source == "import")
        .order_by(interactions.c.id)
    )
    return list(connection.execute(wanted))
