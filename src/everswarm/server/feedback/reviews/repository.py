"""The statements about reviews and decisions, and about judgements that contradict themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, case, func, not_, or_, select, update

from everswarm.server.database import insert_new
from everswarm.server.feedback.repository import LIKED_RATING, SWARM, known_ids, may_consent, newest_first
from everswarm.server.feedback.tables import feedback, interactions, review_decisions, reviews

DISLIKED_RATING = 2  # an answer rated so or worse should not have been of use
UNDECIDED_RATING = 3
JUDGE_LIKES, JUDGE_DISLIKES = 0.75, 0.25  # scores of a model that judged
ROWS_A_STATEMENT = 500
DECIDED = ("accepted", "rejected")


class Doubt(NamedTuple):
    """A way in which the judgements of one interaction are contradictory or weak."""

    score: float  # how doubtful, 0 to 1
    detail: str  # for the reviewer


class DoubtfulInteraction(NamedTuple):
    """An interaction, and the strongest doubt about it."""

    interaction_id: str
    doubt: Doubt


def insert_reviews(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Open the reviews of interactions that have none and still exist; return the ids of these interactions."""
    added: set[str] = set()
    for some in _pieces(rows):
        held = known_ids(connection, [row["interaction_id"] for row in some])
        known = [row for row in some if row["interaction_id"] in held]
        added |= insert_new(connection, reviews.c.interaction_id, known)
    return added


def update_open_reviews(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say anew why these interactions are to be reviewed, where nothing has come of their reviews yet."""
    names = ("reason", "score", "campaign", "detail", "dataset")
    statement = (
        update(reviews)
        .where(reviews.c.interaction_id == bindparam("of_interaction"), reviews.c.state == "open")
        .values({name: bindparam(f"new_{name}") for name in names})
    )
    for some in _pieces(rows):
        values = [
            {"of_interaction": row["interaction_id"]} | {f"new_{name}": row[name] for name in names} for row in some
        ]
        connection.execute(statement, values)


def queued_reviews(
    connection: Connection, *, state: str, reason: str | None, reviewer: str, limit: int
) -> list[Row[Any]]:
    """Return reviews beside their interactions: what `reviewer` has not decided first, then the highest score."""
    theirs = and_(review_decisions.c.review_id == reviews.c.id, review_decisions.c.reviewer == reviewer)
    has_decided = case((select(review_decisions.c.id).where(theirs).exists(), 1), else_=0)
    wanted = _with_interactions().where(reviews.c.state == state)
    if reason is not None:
        wanted = wanted.where(reviews.c.reason == reason)
    in_order = wanted.order_by(has_decided, reviews.c.score.desc(), reviews.c.created_at, reviews.c.id)
    return list(connection.execute(in_order.limit(limit)))


def find_review(connection: Connection, review_id: str, *, hold: bool = False) -> Row[Any] | None:
    """Return one review beside its interaction; with `hold` nobody changes or deletes it until commit."""
    wanted = _with_interactions().where(reviews.c.id == review_id)
    return connection.execute(wanted.with_for_update(of=reviews) if hold else wanted).one_or_none()


def judgements_of(connection: Connection, interaction_ids: Iterable[str]) -> list[Row[Any]]:
    """Return ratings and corrections of these interactions, the oldest first."""
    wanted = select(feedback.c.interaction_id, feedback.c.rating, feedback.c.correction, feedback.c.author)
    wanted = wanted.where(
        feedback.c.interaction_id.in_(list(interaction_ids)),
        or_(feedback.c.rating.is_not(None), feedback.c.correction.is_not(None)),
    )
    return list(connection.execute(wanted.order_by(feedback.c.created_at, feedback.c.id)))


def decisions_of(connection: Connection, review_ids: Iterable[str]) -> list[Row[Any]]:
    """Return all decisions on these reviews, the oldest first."""
    wanted = select(review_decisions).where(review_decisions.c.review_id.in_(list(review_ids)))
    return list(connection.execute(wanted.order_by(review_decisions.c.created_at, review_decisions.c.id)))


def all_verdicts(connection: Connection) -> list[Row[str, str, str]]:
    """Return `review_id, reviewer, verdict` of every decision there is, the oldest first."""
    wanted = select(review_decisions.c.review_id, review_decisions.c.reviewer, review_decisions.c.verdict)
    return list(connection.execute(wanted.order_by(review_decisions.c.created_at, review_decisions.c.id)))


def insert_decision(connection: Connection, row: Mapping[str, Any]) -> None:
    """Add one decision."""
    connection.execute(review_decisions.insert().values(**row))


def set_state(connection: Connection, review_id: str, *, state: str, decided_at: datetime | None) -> None:
    """Store what has come of one review."""
    connection.execute(update(reviews).where(reviews.c.id == review_id).values(state=state, decided_at=decided_at))


def count_by_state(connection: Connection) -> dict[str, int]:
    """Return how many reviews are in each state that any is in."""
    counted = connection.execute(select(reviews.c.state, func.count().label("reviews")).group_by(reviews.c.state))
    return {row.state: row.reviews for row in counted}


def decided_reviews(connection: Connection) -> list[Row[str, str]]:
    """Return `interaction_id, state` of the reviews that are accepted or rejected."""
    wanted = select(reviews.c.interaction_id, reviews.c.state).where(reviews.c.state.in_(DECIDED))
    return list(connection.execute(wanted.order_by(reviews.c.interaction_id)))


def doubtful_interactions(connection: Connection, *, limit: int) -> list[DoubtfulInteraction]:
    """Return interactions whose judgements contradict themselves or say little: most doubtful first, then newest.

    Only those that may be trained on and have no review: whoever gave no consent is not read by reviewers either.
    """
    folded = _folded_judgements()
    doubts = _doubts(folded)
    strongest = case(*((applies, number) for number, (applies, _) in enumerate(doubts)))
    wanted = (
        select(interactions.c.id, strongest.label("doubt"))
        .select_from(folded.join(interactions, interactions.c.id == folded.c.interaction_id))
        .where(folded.c.consents == 1, strongest.is_not(None))
        .order_by(strongest, interactions.c.created_at.desc(), interactions.c.id)
        .limit(limit)
    )
    return [DoubtfulInteraction(row.id, doubts[row.doubt][1]) for row in connection.execute(wanted)]


def _doubts(judged: Any) -> list[tuple[ColumnElement[bool], Doubt]]:
    """Return what makes folded judgements doubtful, the strongest first."""
    liked, disliked = judged.c.rating >= LIKED_RATING, judged.c.rating <= DISLIKED_RATING
    spread, answered = judged.c.best - judged.c.worst, func.length(interactions.c.response) > 0
    return [
        (spread == 4, Doubt(0.9, "It is rated 1 and 5.")),
        (and_(judged.c.thumbs_down > 0, liked), Doubt(0.8, "It has a thumb down, and is rated 4 or 5.")),
        (and_(judged.c.corrections > 0, judged.c.rating == 5), Doubt(0.7, "It is rated 5, and corrected.")),
        (spread == 3, Doubt(0.65, "Two ratings of it differ by 3.")),
        (and_(judged.c.judged_best >= JUDGE_LIKES, disliked), Doubt(0.6, "A model judged it good, a person bad.")),
        (and_(judged.c.judged_worst <= JUDGE_DISLIKES, liked), Doubt(0.6, "A model judged it bad, a person good.")),
        (and_(judged.c.corrections > 0, judged.c.rating == 4), Doubt(0.5, "It is rated 4, and corrected.")),
        (and_(judged.c.regenerated > 0, liked), Doubt(0.45, "It is rated 4 or 5, and another answer was asked for.")),
        (and_(judged.c.copied > 0, disliked), Doubt(0.4, "It is rated 1 or 2, and was copied.")),
        (and_(judged.c.rating == UNDECIDED_RATING, answered), Doubt(0.2, "It is rated 3: neither good nor bad.")),
    ]


def _folded_judgements() -> Any:
    """Return what people said of each interaction without a review; of ratings also the latest, which counts."""
    by_person = feedback.c.author != SWARM
    unreviewed = not_(select(reviews.c.id).where(reviews.c.interaction_id == feedback.c.interaction_id).exists())
    ranked = (
        select(
            feedback.c.interaction_id,
            feedback.c.rating,
            feedback.c.judge_score,
            and_(feedback.c.consent, may_consent()).label("consent"),
            and_(by_person, feedback.c.correction.is_not(None)).label("corrected"),
            feedback.c.liked.is_(False).label("thumb_down"),
            feedback.c.regenerated,
            feedback.c.copied,
            newest_first(not_(may_consent())).label("consent_rank"),
            newest_first(feedback.c.rating.is_(None)).label("rating_rank"),
        )
        .join(interactions, interactions.c.id == feedback.c.interaction_id)
        .where(unreviewed)
        .subquery()
    )
    return (
        select(
            ranked.c.interaction_id,
            func.count().filter(and_(ranked.c.consent_rank == 1, ranked.c.consent)).label("consents"),
            func.max(ranked.c.rating).filter(ranked.c.rating_rank == 1).label("rating"),
            func.max(ranked.c.rating).label("best"),
            func.min(ranked.c.rating).label("worst"),
            func.max(ranked.c.judge_score).label("judged_best"),
            func.min(ranked.c.judge_score).label("judged_worst"),
            func.count().filter(ranked.c.corrected).label("corrections"),
            func.count().filter(ranked.c.thumb_down).label("thumbs_down"),
            func.count().filter(ranked.c.regenerated).label("regenerated"),
            func.count().filter(ranked.c.copied).label("copied"),
        )
        .group_by(ranked.c.interaction_id)
        .subquery()
    )


def _with_interactions() -> Select[Any]:
    wanted = select(reviews, interactions.c.user, interactions.c.messages, interactions.c.response)
    return wanted.join(interactions, interactions.c.id == reviews.c.interaction_id)


def _pieces(rows: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[Mapping[str, Any]]]:
    return (rows[start : start + ROWS_A_STATEMENT] for start in range(0, len(rows), ROWS_A_STATEMENT))
