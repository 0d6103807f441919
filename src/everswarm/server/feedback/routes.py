"""`/api/feedback`, `/api/training/feedback` and `/api/interactions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from everswarm.schemas.interaction import FeedbackAccepted, FeedbackRequest, InteractionView
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import TrainingFeedback, TrainingFeedbackAccepted
from everswarm.server.auth import Principal, require
from everswarm.server.database import DatabaseDep
from everswarm.server.feedback import service
from everswarm.server.feedback.repository import FeedbackStats
from everswarm.server.feedback.upload import FEEDBACK_PATH

router = APIRouter(prefix="/api", tags=["feedback"])

Person = Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))]
DeviceKey = Annotated[Principal, Depends(require(Scope.DEVICE))]


async def one_record(http: Request, principal: Person) -> None:
    """Count one record of the caller, as one of an upload is."""
    if principal.scope is not Scope.ADMIN:
        http.app.state.record_limit.take(principal.user, 1)


@router.post("/feedback", dependencies=[Depends(one_record)])
def give_feedback(database: DatabaseDep, principal: Person, request: FeedbackRequest) -> FeedbackAccepted:
    """Rate, correct or comment one interaction, or prefer it over another. With an `id` it counts once, sent twice."""
    return FeedbackAccepted(feedback_id=service.record_feedback(database, principal, request))


@router.post(FEEDBACK_PATH.removeprefix("/api"))
async def upload_training_feedback(_principal: DeviceKey, body: TrainingFeedback) -> TrainingFeedbackAccepted:
    """Take what a device has collected, offline or not; plain or with `Content-Encoding: gzip`.

    The answer comes when it is durable, and names each item that was not stored. Sending it again adds nothing and
    gives the same answer id.
    """
    raise AssertionError("edge.express answers this path; the route is its documentation")


@router.get("/interactions")
def list_interactions(
    database: DatabaseDep, principal: Person, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> list[InteractionView]:
    """The newest interactions of this key, newest first; for an admin those of all."""
    return service.recent_interactions(database, principal, limit=limit)


@router.get("/feedback/stats")
def feedback_stats(database: DatabaseDep, principal: Person) -> FeedbackStats:
    """How many interactions and judgements there are."""
    return service.stats(database)
