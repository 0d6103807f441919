"""The statements about interactions and judgements. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, distinct, func, not_, or_, select

from everswarm.schemas.base import Record
from everswarm.server.database import insert_ignore, insert_new
from everswarm.server.feedback.tables import feedback, interactions

LIKED_RATING = 4  # an answer rated so or better may itself be learnt from
ROWS_A_FETCH = 500  # of a long result, so that it never lies in memory whole


class FeedbackStats(Record):
    """How much there is, over all users."""

    interactions: int
    judged: int  # interactions with at least one judgement
    usable: int  # corrected, or answered and rated 4 or 5; with the latest consent of who asked
    people: int  # of whom these usable ones are
    ratings: int
    corrections: int
    comments: int
    votes: int
    users: int  # who were answered
    mean_rating: float | None


def insert_interactions(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Store the interactions whose ids are new; return these ids."""
    return insert_new(connection, interactions.c.id, rows)


def insert_feedback(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> int:
    """Store the judgements whose ids are new; return how many that were."""
    return insert_ignore(connection, feedback, rows)


def known_ids(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Return those of `ids` that interactions have already."""
    return set(connection.execute(select(interactions.c.id).where(interactions.c.id.in_(list(ids)))).scalars())


def other_device_of(connection: Connection, sender: str, *, than: str) -> str | None:
    """Return a device other than `than` that `sender` has sent interactions for, if there is one."""
    wanted = select(interactions.c.user).where(interactions.c.sender == sender, interactions.c.source == "device")
    return connection.execute(wanted.where(interactions.c.user != than).limit(1)).scalar_one_or_none()


def owned_ids(connection: Connection, ids: Iterable[str], *, user: str) -> set[str]:
    """Return those of `ids` that are interactions of `user`, asked or sent."""
    wanted = select(interactions.c.id).where(interactions.c.id.in_(list(ids)), _owned_by(user))
    return set(connection.execute(wanted).scalars())


def recent_interactions(connection: Connection, limit: int, *, user: str | None) -> list[Row[Any]]:
    """Return the newest interactions, newest first; those of one `user`, or of all."""
    wanted = select(interactions)
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return list(connection.execute(wanted.order_by(interactions.c.created_at.desc(), interactions.c.id).limit(limit)))


def judgements(connection: Connection) -> Iterable[Row[Any]]:
    """Return each judgement beside its interaction, by interaction id, the oldest judgement first."""
    wanted = (
        select(
            interactions.c.id,
            interactions.c.user,
            interactions.c.created_at,
            interactions.c.messages,
            interactions.c.response,
            interactions.c.model,
            feedback.c.rating,
            feedback.c.correction,
            feedback.c.comment,
            feedback.c.consent,
            _may_consent().label("may_consent"),
        )
        .join(feedback, feedback.c.interaction_id == interactions.c.id)
        .order_by(interactions.c.id, feedback.c.created_at, feedback.c.id)
    )
    found: Iterable[Row[Any]] = connection.execute(wanted.execution_options(yield_per=ROWS_A_FETCH))
    return found


def count_all(connection: Connection) -> FeedbackStats:
    """Count interactions and judgements."""
    asked = connection.execute(
        select(func.count().label("interactions"), func.count(distinct(interactions.c.user)).label("users"))
    ).one()
    given = connection.execute(
        select(
            func.count(distinct(feedback.c.interaction_id)).label("judged"),
            func.count(feedback.c.rating).label("ratings"),
            func.count(feedback.c.correction).label("corrections"),
            func.count(feedback.c.comment).label("comments"),
            func.count(feedback.c.preferred_over).label("votes"),
            func.avg(feedback.c.rating).label("mean_rating"),
        )
    ).one()
    usable = connection.execute(_count_usable()).one()
    return FeedbackStats(
        interactions=asked.interactions,
        judged=given.judged,
        usable=usable.interactions,
        people=usable.people,
        ratings=given.ratings,
        corrections=given.corrections,
        comments=given.comments,
        votes=given.votes,
        users=asked.users,
        mean_rating=None if given.mean_rating is None else round(float(given.mean_rating), 3),
    )


def _owned_by(user: str) -> Any:
    return or_(interactions.c.user == user, interactions.c.sender == user)


def _may_consent() -> Any:
    """Say whether a judgement is of who asked, or of the application that asked for them: nobody else's is consent."""
    return feedback.c.user.in_([interactions.c.user, func.coalesce(interactions.c.sender, interactions.c.user)])


def _newest_first(says_nothing: Any) -> Any:
    """Rank the judgements of an interaction, the newest first; last those for which `says_nothing` holds."""
    return func.row_number().over(
        partition_by=feedback.c.interaction_id,
        order_by=(says_nothing, feedback.c.created_at.desc(), feedback.c.id.desc()),
    )


def _count_usable() -> Select[int, int]:
    """Fold as `judged_interactions` does, in SQL, because a page that refreshes asks for it."""
    ranked = (
        select(
            feedback.c.interaction_id,
            and_(feedback.c.consent, _may_consent()).label("consent"),
            feedback.c.rating,
            feedback.c.correction,
            _newest_first(not_(_may_consent())).label("consent_rank"),
            _newest_first(feedback.c.rating.is_(None)).label("rating_rank"),
        )
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .subquery()
    )
    folded = (
        select(
            ranked.c.interaction_id,
            func.count().filter(and_(ranked.c.consent_rank == 1, ranked.c.consent)).label("consents"),
            func.count(ranked.c.correction).label("corrections"),
            func.count().filter(and_(ranked.c.rating_rank == 1, ranked.c.rating >= LIKED_RATING)).label("likes"),
        )
        .group_by(ranked.c.interaction_id)
        .subquery()
    )
    liked = and_(folded.c.likes == 1, interactions.c.response != "")
    return (
        select(func.count().label("interactions"), func.count(distinct(interactions.c.user)).label("people"))
        .select_from(folded.join(interactions, interactions.c.id == folded.c.interaction_id))
        .where(folded.c.consents == 1, or_(folded.c.corrections > 0, liked))
    )
