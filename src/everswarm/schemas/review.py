"""Records that people should look at before anything learns from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everswarm.schemas.base import Identifier, Record, Timestamp
from everswarm.schemas.interaction import Message, Text

Suspected = Literal[
    "burst",  # far more in a short time than others send
    "near copies",  # the same answer to many questions
    "planted phrase",  # words that one user writes everywhere and others do not
    "disagreement",  # corrections that share nothing with the answer, the question or what others say
]
ReviewReason = Literal["burst", "near copies", "planted phrase", "disagreement", "doubt"]
Verdict = Literal["accept", "reject"]
ReviewState = Literal["open", "accepted", "rejected", "disputed"]


class Suspicion(Record):
    """Why curation set a record aside. `campaign` is the same for those that seem to belong together."""

    id: str  # of the interaction
    user: str  # a pseudonym
    reason: Suspected
    score: float = Field(ge=0, le=1)
    campaign: str
    detail: str = Field(max_length=2_000)


class DecisionRequest(Record):
    """`POST /api/reviews/{id}/decisions`. Of one reviewer the latest counts, and all are kept."""

    verdict: Verdict
    comment: Text | None = None


class Decision(Record):
    """What one reviewer said of one record."""

    reviewer: str
    verdict: Verdict
    comment: str | None
    created_at: Timestamp


class Review(Record):
    """One record in the queue, with what reviewers said of it so far."""

    id: str
    interaction_id: Identifier
    reason: ReviewReason
    score: float
    campaign: str | None
    detail: str | None
    dataset: str | None
    state: ReviewState
    created_at: Timestamp
    decided_at: Timestamp | None
    user: str
    messages: list[Message]
    response: str | None
    correction: str | None
    rating: int | None
    decisions: list[Decision]


class ReviewAgreement(Record):
    """How much reviewers agree: over records with at least two of them."""

    reviewed: int  # records with a decision
    reviewed_by_several: int
    agreeing_share: float | None  # pairs of verdicts that are the same
    krippendorff_alpha: float | None  # 1: always; 0: as chance would (nominal data)


class ReviewQueue(Record):
    """`GET /api/reviews`."""

    open: int
    accepted: int
    rejected: int
    disputed: int
    agreement: ReviewAgreement
    reviews: list[Review]
