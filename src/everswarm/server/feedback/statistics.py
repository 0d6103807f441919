"""Numbers for a picture of what people said. Text stays sealed: only whether there is one is asked."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, distinct, func, or_, select

from everswarm.schemas.base import Record
from everswarm.server.database import Database
from everswarm.server.feedback.repository import LIKED_RATING, SWARM
from everswarm.server.feedback.tables import feedback, interactions

WEEKS = 12  # that of the latest judgement, and those before it
MOST_LANGUAGES = 8  # the rest is counted as one
UNSAID = "not said"  # where a device or a file did not name the language


class Shares(Record):
    """Of the interactions that were judged, 0 to 1."""

    corrected: float  # by a person
    liked: float  # a thumb up, or 4 or 5 stars, from anybody at any time
    disliked: float  # a thumb down, or 1 or 2 stars
    consented: float  # by who asked, last


class FeedbackPicture(Record):
    """What a picture shows."""

    ratings: dict[int, int]  # stars → how often given
    weeks: dict[date, int]  # its Monday (UTC) → judgements, the oldest first; empty without judgements
    shares: Shares | None  # None: nothing was judged
    sources: dict[str, int]  # of interactions, the most frequent first
    languages: dict[str, int]  # of interactions, as devices and files name them


def read_picture(database: Database) -> FeedbackPicture:
    """Count for a picture; one consistent state."""
    with database.read() as connection:
        return FeedbackPicture(
            ratings=_ratings(connection),
            weeks=_weeks(connection),
            shares=_shares(connection),
            sources=_most_frequent(connection, interactions.c.source, most=MOST_LANGUAGES),
            languages=_most_frequent(connection, interactions.c.language, most=MOST_LANGUAGES),
        )


def _ratings(connection: Connection) -> dict[int, int]:
    wanted = select(feedback.c.rating, func.count()).where(feedback.c.rating.is_not(None)).group_by(feedback.c.rating)
    found = {int(rating): int(count) for rating, count in connection.execute(wanted)}
    return {stars: found.get(stars, 0) for stars in range(1, 6)}


def _weeks(connection: Connection) -> dict[date, int]:
    latest: datetime | None = connection.execute(select(func.max(feedback.c.created_at))).scalar_one()
    if latest is None:
        return {}
    last = (latest - timedelta(days=latest.weekday())).replace(hour=0, minute=0, second=0, microsecond=0)
    mondays = [last - timedelta(weeks=back) for back in reversed(range(WEEKS))]
    in_week = [
        func.count().filter(feedback.c.created_at >= monday, feedback.c.created_at < monday + timedelta(weeks=1))
        for monday in mondays
    ]
    counts = connection.execute(select(*in_week).where(feedback.c.created_at >= mondays[0])).one()
    return {monday.date(): int(count) for monday, count in zip(mondays, counts, strict=True)}


def _shares(connection: Connection) -> Shares | None:
    conditions = {
        "judged": feedback.c.interaction_id.is_not(None),
        "corrected": and_(feedback.c.correction.is_not(None), feedback.c.author != SWARM),
        "liked": or_(feedback.c.liked.is_(True), feedback.c.rating >= LIKED_RATING),
        "disliked": or_(feedback.c.liked.is_(False), feedback.c.rating <= 2),
    }
    counted = [
        func.count(distinct(feedback.c.interaction_id)).filter(condition).label(name)
        for name, condition in conditions.items()
    ]
    found = connection.execute(select(*counted)).one()._mapping
    judged = int(found["judged"])
    if not judged:
        return None
    counts = {name: int(found[name]) for name in ("corrected", "liked", "disliked")}
    counts["consented"] = _consented(connection)
    return Shares(**{name: round(count / judged, 4) for name, count in counts.items()})


def _consented(connection: Connection) -> int:
    """Count the interactions that who asked, or the application that asked for them, last agreed to."""
    of_who_asked = feedback.c.user.in_([interactions.c.user, func.coalesce(interactions.c.sender, interactions.c.user)])
    newest_first = func.row_number().over(
        partition_by=feedback.c.interaction_id, order_by=(feedback.c.created_at.desc(), feedback.c.id.desc())
    )
    said = (
        select(feedback.c.consent, newest_first.label("rank"))
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .where(of_who_asked)
        .subquery()
    )
    agreed: ColumnElement[bool] = and_(said.c.rank == 1, said.c.consent)
    return int(connection.execute(select(func.count()).select_from(said).where(agreed)).scalar_one())


def _most_frequent(connection: Connection, column: Column[Any], *, most: int) -> dict[str, int]:
    """Return how many interactions have each value of `column`, the most frequent first; beyond `most` as 'other'."""
    count = func.count().label("count")
    wanted = select(column, count).group_by(column).order_by(count.desc(), column)
    found = [(value or UNSAID, int(number)) for value, number in connection.execute(wanted)]
    rest = sum(number for _, number in found[most:])
    return dict(found[:most]) | ({"other": rest} if rest else {})
