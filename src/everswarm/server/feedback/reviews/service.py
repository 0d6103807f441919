"""The review queue: people look at what is suspicious or doubtful, before anything learns from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, Row

from everswarm.errors import NotFoundError
from everswarm.identifiers import new_id
from everswarm.schemas.base import Record
from everswarm.schemas.review import (
    Decision,
    DecisionRequest,
    Review,
    ReviewAgreement,
    ReviewQueue,
    ReviewReason,
    ReviewState,
    Suspicion,
    Verdict,
)
from everswarm.server.auth import Principal
from everswarm.server.database import Database, take_turns
from everswarm.server.feedback.reading import storable
from everswarm.server.feedback.repository import SWARM
from everswarm.server.feedback.reviews import repository
from everswarm.server.feedback.reviews.agreement import agreeing_share, krippendorff_alpha

CAMPAIGN_CHARACTERS = 64
ONE_TICK = timedelta(microseconds=1)


class ReviewsAdded(Record):
    """Answer to `POST /api/reviews/sample`."""

    added: int  # interactions that are new in the queue


def store_suspicions(connection: Connection, suspicions: Iterable[Suspicion], *, dataset: str) -> int:
    """Put what curation kept out of `dataset` (its sha256) into the queue; return how many interactions are new there.

    An interaction has one review. A later suspicion says anew why, while that is open and not decided; an earlier
    decision stays. Interactions that were erased meanwhile are passed over.
    """
    strongest: dict[str, Suspicion] = {}
    for suspicion in suspicions:
        known = strongest.get(suspicion.id)
        if known is None or suspicion.score > known.score:
            strongest[suspicion.id] = suspicion
    now = datetime.now(UTC)
    rows = [_row_of(strongest[id_], dataset=dataset, now=now) for id_ in sorted(strongest)]
    added = repository.insert_reviews(connection, rows)
    repository.update_open_reviews(connection, [row for row in rows if row["interaction_id"] not in added])
    return len(added)


def sample_doubtful(database: Database, *, limit: int) -> ReviewsAdded:
    """Put at most `limit` interactions with doubtful judgements into the queue.

    All judgements are looked at (7 s a million) before the transaction, so that others may write.
    """
    with database.read() as connection:
        found = repository.doubtful_interactions(connection, limit=limit)
    now = datetime.now(UTC)
    rows = [
        _new_row(id_, now=now, reason="doubt", score=doubt.score, detail=doubt.detail, campaign=None, dataset=None)
        for id_, doubt in found
    ]
    with database.transaction() as connection:
        return ReviewsAdded(added=len(repository.insert_reviews(connection, rows)))


def review_queue(
    database: Database, *, state: ReviewState, reason: ReviewReason | None, limit: int, reviewer: str
) -> ReviewQueue:
    """Return the reviews in `state`: first those that `reviewer` has not decided; of them the highest score first.

    They hold what people wrote, unscrubbed: for admins only. Counts and agreement are over all reviews.
    """
    with database.read() as connection:
        rows = repository.queued_reviews(connection, state=state, reason=reason, reviewer=reviewer, limit=limit)
        views = _views(connection, rows)
        counts = repository.count_by_state(connection)
        agreement = _agreement(repository.all_verdicts(connection))
    return ReviewQueue(
        open=counts.get("open", 0),
        accepted=counts.get("accepted", 0),
        rejected=counts.get("rejected", 0),
        disputed=counts.get("disputed", 0),
        agreement=agreement,
        reviews=views,
    )


def find_review(database: Database, review_id: str) -> Review:
    """Return one review.

    Raises:
        NotFoundError: there is none with this id.
    """
    with database.read() as connection:
        return _views(connection, [_found(repository.find_review(connection, review_id), review_id)])[0]


def decide(
    database: Database, principal: Principal, review_id: str, request: DecisionRequest, *, reviewers: int
) -> Review:
    """Keep what a reviewer says of one record, and return the review with what has come of it; see `outcome`.

    A reviewer is a key: one person with two keys counts twice. Who changes their mind decides again, which may open a
    closed review. Saying the same again adds nothing.

    Args:
        database: where the review is.
        principal: who decides.
        review_id: of the review.
        request: the verdict, with a comment or none.
        reviewers: how many must have decided; 1 where one admin reviews alone.

    Raises:
        NotFoundError: there is no such review; its interaction may have been erased.
    """
    with database.transaction() as connection:
        take_turns(connection, "reviews", review_id)
        review = _found(repository.find_review(connection, review_id, hold=True), review_id)
        trace = repository.decisions_of(connection, [review_id])
        _add_decision(connection, review_id, trace, reviewer=principal.user, request=request)
        latest = {decision.reviewer: decision.verdict for decision in trace} | {principal.user: request.verdict}
        state = outcome(list(latest.values()), reviewers=reviewers)
        if state != review.state:
            decided_at = datetime.now(UTC) if state in repository.DECIDED else None
            repository.set_state(connection, review_id, state=state, decided_at=decided_at)
        return _views(connection, [_found(repository.find_review(connection, review_id), review_id)])[0]


def outcome(verdicts: Sequence[Verdict], *, reviewers: int) -> ReviewState:
    """Return what has come of a review: `verdicts` holds the latest of each person who decided.

    It is open until `reviewers` have decided. Then it is decided if they agree, and disputed if not; with more verdicts
    than that a majority of two thirds decides.
    """
    given, accepting = len(verdicts), sum(verdict == "accept" for verdict in verdicts)
    agreeing = max(accepting, given - accepting)
    if given < reviewers:
        return "open"
    if agreeing < given and (given == reviewers or 3 * agreeing < 2 * given):
        return "disputed"
    return "accepted" if accepting == agreeing else "rejected"


def verdicts(connection: Connection) -> dict[str, Literal["accepted", "rejected"]]:
    """Return what reviewers decided, by interaction id: what curation obeys. Open and disputed ones are not in it."""
    return {row.interaction_id: row.state for row in repository.decided_reviews(connection)}


def _row_of(suspicion: Suspicion, *, dataset: str, now: datetime) -> dict[str, Any]:
    return _new_row(
        suspicion.id,
        now=now,
        reason=suspicion.reason,
        score=suspicion.score,
        campaign=storable(suspicion.campaign[:CAMPAIGN_CHARACTERS]),
        detail=storable(suspicion.detail),
        dataset=dataset,
    )


def _new_row(interaction_id: str, *, now: datetime, **why: Any) -> dict[str, Any]:
    return {"id": new_id(), "interaction_id": interaction_id, "state": "open", "created_at": now, **why}


def _found(row: Row[Any] | None, review_id: str) -> Row[Any]:
    if row is None:
        raise NotFoundError(
            f"There is no review {review_id!r}; one whose interaction was erased is gone, too. GET /api/reviews lists "
            "those that are."
        )
    return row


def _add_decision(
    connection: Connection, review_id: str, trace: Sequence[Row[Any]], *, reviewer: str, request: DecisionRequest
) -> None:
    comment, now = storable(request.comment), datetime.now(UTC)
    said = [(decision.verdict, decision.comment) for decision in trace if decision.reviewer == reviewer]
    if said and said[-1] == (request.verdict, comment):
        return
    row = {
        "id": new_id(),
        "review_id": review_id,
        "reviewer": reviewer,
        "verdict": request.verdict,
        "comment": comment,
        # later than the one before, whatever the clocks of several servers say: the latest counts
        "created_at": max(now, trace[-1].created_at + ONE_TICK) if trace else now,
    }
    repository.insert_decision(connection, row)


def _views(connection: Connection, rows: Sequence[Row[Any]]) -> list[Review]:
    """Return the records of these rows, with what people said of the interactions and of the reviews."""
    judgements, decisions = defaultdict(list), defaultdict(list)
    for judgement in repository.judgements_of(connection, [row.interaction_id for row in rows]):
        judgements[judgement.interaction_id].append(judgement)
    for decision in repository.decisions_of(connection, [row.id for row in rows]):
        decisions[decision.review_id].append(Decision(**_fields(decision, Decision)))
    return [_view(row, judgements[row.interaction_id], decisions[row.id]) for row in rows]


def _view(row: Row[Any], judgements: Sequence[Row[Any]], decisions: list[Decision]) -> Review:
    by_people = [judgement for judgement in judgements if judgement.author != SWARM]
    return Review(
        **_fields(row, Review, without={"correction", "rating", "decisions"}),
        correction=_latest(by_people, "correction") or _latest(judgements, "correction"),
        rating=_latest(by_people, "rating"),
        decisions=decisions,
    )


def _latest(judgements: Sequence[Row[Any]], name: str) -> Any:
    given = (judgement._mapping[name] for judgement in reversed(judgements))
    return next((value for value in given if value is not None), None)


def _fields(row: Row[Any], record: type[Record], *, without: Iterable[str] = ()) -> dict[str, Any]:
    return {name: row._mapping[name] for name in record.model_fields if name not in without}


def _agreement(decisions: Iterable[Row[str, str, str]]) -> ReviewAgreement:
    latest: dict[str, dict[str, str]] = defaultdict(dict)
    for review_id, reviewer, verdict in decisions:
        latest[review_id][reviewer] = verdict
    reviewed = [list(by_reviewer.values()) for by_reviewer in latest.values()]
    return ReviewAgreement(
        reviewed=len(reviewed),
        reviewed_by_several=sum(len(labels) > 1 for labels in reviewed),
        agreeing_share=agreeing_share(reviewed),
        krippendorff_alpha=krippendorff_alpha(reviewed),
    )
