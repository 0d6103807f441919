"""What tests of the review queue do again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from everswarm.schemas.interaction import FeedbackRequest
from everswarm.schemas.review import DecisionRequest, Review, ReviewQueue, Suspicion
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal
from everswarm.server.database import Database
from everswarm.server.feedback import NewInteraction, record_feedback, record_interaction
from everswarm.server.feedback.reviews.service import (
    decide,
    review_queue,
    store_suspicions,
    verdicts,
)
from everswarm.server.feedback.tables import feedback, interactions, reviews

ANN = Principal(key_id="019a0000-0000-7000-8000-00000000000a", scope=Scope.USER, label="ann")
BEN, CLEO, DAN = (
    Principal(key_id=f"019a0000-0000-7000-8000-0000000000{number}", scope=Scope.ADMIN, label=number)
    for number in ("1b", "1c", "1d")
)
DATASET, NEXT_DATASET = "d" * 64, "e" * 64
QUESTION = [{"role": "user", "content": "Where is the treasure?"}]


def judged(database: Database, **values: Any) -> str:
    new = NewInteraction(user=ANN.user, messages=QUESTION, response=values.pop("response", "In the cave."))
    id_ = record_interaction(database, new)
    for given_values in values.pop("also", []):
        judge(database, id_, **given_values)
    judge(database, id_, **values)
    return id_


def judge(database: Database, interaction_id: str, by: Principal = ANN, **values: Any) -> None:
    request = FeedbackRequest(**{"interaction_id": interaction_id, "consent": True, **values})
    record_feedback(database, by, request)


def suspicion(interaction_id: str, **values: Any) -> Suspicion:
    fields = {"user": "u-1", "reason": "burst", "score": 0.5, "campaign": "c-1", "detail": "2,000 within an hour"}
    return Suspicion(**{"id": interaction_id, **fields, **values})


def suspect(database: Database, *suspicions: Suspicion, dataset: str = DATASET) -> int:
    with database.transaction() as connection:
        return store_suspicions(connection, suspicions, dataset=dataset)


def queued(database: Database, **values: Any) -> ReviewQueue:
    return review_queue(database, **{"state": "open", "reason": None, "limit": 20, "reviewer": BEN.user, **values})


def open_review(database: Database, **values: Any) -> str:
    id_ = judged(database, rating=5)
    suspect(database, suspicion(id_, **values))
    return next(review.id for review in queued(database).reviews if review.interaction_id == id_)


def say(database: Database, by: Principal, review_id: str, verdict: str, comment: str | None = None) -> Review:
    request = DecisionRequest.model_validate({"verdict": verdict, "comment": comment})
    return decide(database, by, review_id, request, reviewers=2)


def decided(database: Database) -> dict[str, str]:
    with database.read() as connection:
        return dict(verdicts(connection))


def erase(database: Database, interaction_id: str) -> None:
    with database.transaction() as connection:
        connection.execute(sa.delete(reviews).where(reviews.c.interaction_id == interaction_id))
        connection.execute(sa.delete(feedback).where(feedback.c.interaction_id == interaction_id))
        connection.execute(sa.delete(interactions).where(interactions.c.id == interaction_id))


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Make `calls` at the same moment; return what each gave, or its error."""
    found: list[Any] = [None] * len(calls)
    ready = threading.Barrier(len(calls))

    def make(number: int) -> None:
        ready.wait(30)
        try:
            found[number] = calls[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=make, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found
