"""`/api/reviews`: for admins, because it shows what people wrote."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from everswarm.schemas.review import DecisionRequest, Review, ReviewQueue, ReviewReason, ReviewState
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, require
from everswarm.server.database import DatabaseDep
from everswarm.server.feedback.reviews import service
from everswarm.server.feedback.reviews.service import ReviewsAdded

router = APIRouter(prefix="/api/reviews", tags=["reviews"])

Admin = Annotated[Principal, Depends(require(Scope.ADMIN))]
ReviewId = Annotated[str, Path(max_length=200, pattern=r"^[^\x00]*$")]


@router.get("")
def show_queue(
    database: DatabaseDep,
    principal: Admin,
    state: ReviewState = "open",
    reason: ReviewReason | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> ReviewQueue:
    """What people should look at before a student learns from it, and how much reviewers agree.

    Those that you have not decided come first, of them the most suspicious or doubtful. A review is open until as many
    reviewers have decided as the setting `feedback.reviewers` says; with one admin key only, set it to 1.
    """
    return service.review_queue(database, state=state, reason=reason, limit=limit, reviewer=principal.user)


@router.post("/sample")
def sample_doubtful(
    database: DatabaseDep, principal: Admin, limit: Annotated[int, Query(ge=1, le=1_000)] = 50
) -> ReviewsAdded:
    """Add interactions whose judgements contradict themselves or say little, the most doubtful first."""
    return service.sample_doubtful(database, limit=limit)


@router.get("/{review_id}")
def show_review(database: DatabaseDep, principal: Admin, review_id: ReviewId) -> Review:
    """One record in the queue, with all decisions on it."""
    return service.find_review(database, review_id)


@router.post("/{review_id}/decisions")
def decide(
    database: DatabaseDep, principal: Admin, review_id: ReviewId, decision: DecisionRequest, request: Request
) -> Review:
    """Accept or reject one record. Of your decisions on it the latest counts, and all are kept."""
    needed: int = request.app.state.settings.feedback.reviewers
    return service.decide(database, principal, review_id, decision, reviewers=needed)
