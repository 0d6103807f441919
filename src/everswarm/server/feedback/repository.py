"""The statements about interactions and judgements. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, distinct, func, not_, or_, select, update

from everswarm.schemas.base import Record
from everswarm.server.database import insert_ignore, insert_new
from everswarm.server.feedback.tables import feedback, interactions

LIKED_RATING = 4  # an answer rated so or better may itself be learnt from
BEST_RATING = 5  # an answer rated so by a person needs no better one from the swarm
PERSON, SWARM = "person", "swarm"  # whose words a judgement holds
ROWS_A_FETCH = 500  # of a long result, so that it never lies in memory whole


class FeedbackStats(Record):
    """How much there is, over all users."""

    interactions: int
    judged: int  # interactions with at least one judgement
    usable: int  # corrected, or answered and rated 4 or 5; with the latest consent of who asked
    people: int  # of whom these usable ones are
    ratings: int
    corrections: int  # by people
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
    return _held(connection, select(interactions.c.id).where(interactions.c.id.in_(list(ids))))


def other_device_of(connection: Connection, sender: str, *, than: str) -> str | None:
    """Return a device other than `than` that `sender` has sent interactions for, if there is one."""
    wanted = select(interactions.c.user).where(interactions.c.sender == sender, interactions.c.source == "device")
    return connection.execute(wanted.where(interactions.c.user != than).limit(1)).scalar_one_or_none()


def owned_ids(connection: Connection, ids: Iterable[str], *, user: str) -> set[str]:
    """Return those of `ids` that are interactions of `user`, asked or sent."""
    return _held(connection, select(interactions.c.id).where(interactions.c.id.in_(list(ids)), _owned_by(user)))


def _held(connection: Connection, wanted: Select[Any]) -> set[str]:
    """Return ids that nobody deletes before this transaction ends, so that a judgement can name them."""
    return set(connection.execute(wanted.with_for_update(read=True, key_share=True)).scalars())


def recent_interactions(connection: Connection, limit: int, *, user: str | None) -> list[Row[Any]]:
    """Return the newest interactions, newest first; those of one `user`, or of all."""
    wanted = select(interactions)
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return list(connection.execute(wanted.order_by(interactions.c.created_at.desc(), interactions.c.id).limit(limit)))


def answered_interaction(connection: Connection, interaction_id: str, *, user: str | None) -> Row[Any] | None:
    """Return the row of one interaction that has a trace; of `user`, or of anybody."""
    wanted = select(interactions).where(interactions.c.id == interaction_id, interactions.c.trace.is_not(None))
    if user is not None:
        wanted = wanted.where(_owned_by(user))
    return connection.execute(wanted).one_or_none()


def find_interaction(connection: Connection, interaction_id: str) -> Row[Any] | None:
    """Return the row of one interaction."""
    return connection.execute(select(interactions).where(interactions.c.id == interaction_id)).one_or_none()


def escalated_by(connection: Connection, ids: Iterable[str], *, user: str) -> list[Row[Any]]:
    """Return those of `ids` that are interactions of `user` which the swarm has answered again."""
    wanted = select(interactions).where(interactions.c.id.in_(list(ids)), interactions.c.escalated_to.is_not(None))
    return list(connection.execute(wanted.where(_owned_by(user)).order_by(interactions.c.id)))


def mark_escalated(connection: Connection, interaction_id: str, *, answer_id: str) -> bool:
    """Note which interaction answers this one again; False where another one does already."""
    unmarked = and_(interactions.c.id == interaction_id, interactions.c.escalated_to.is_(None))
    statement = update(interactions).where(unmarked).values(escalated_to=answer_id).returning(interactions.c.id)
    return connection.execute(statement).one_or_none() is not None


def latest_consent(connection: Connection, interaction_id: str) -> bool:
    """Return what who asked said last of the use of one interaction; False where they never did."""
    wanted = (
        select(feedback.c.consent)
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .where(feedback.c.interaction_id == interaction_id, _may_consent())
        .order_by(feedback.c.created_at.desc(), feedback.c.id.desc())
    )
    return bool(connection.execute(wanted.limit(1)).scalar_one_or_none())


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
            feedback.c.author,
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
            func.count(feedback.c.correction).filter(feedback.c.author != SWARM).label("corrections"),
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
            feedback.c.author,
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
            func.count(ranked.c.correction).filter(ranked.c.author != SWARM).label("corrections"),
            func.count(ranked.c.correction).filter(ranked.c.author == SWARM).label("better_answers"),
            func.count().filter(and_(ranked.c.rating_rank == 1, ranked.c.rating >= LIKED_RATING)).label("likes"),
            func.count().filter(and_(ranked.c.rating_rank == 1, ranked.c.rating == BEST_RATING)).label("praises"),
        )
        .group_by(ranked.c.interaction_id)
        .subquery()
    )
    liked = and_(folded.c.likes == 1, interactions.c.response != "")
    bettered = and_(folded.c.better_answers > 0, folded.c.praises == 0)
    return (
        select(func.count().label("interactions"), func.count(distinct(interactions.c.user)).label("people"))
        .select_from(folded.join(interactions, interactions.c.id == folded.c.interaction_id))
        .where(folded.c.consents == 1, or_(folded.c.corrections > 0, bettered, liked))
    )
