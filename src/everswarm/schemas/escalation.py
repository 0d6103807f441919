"""A question that a device asks the swarm again, with what its own small model answered."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from everswarm.schemas.base import Identifier, Record
from everswarm.schemas.interaction import Message, Text

MAX_ANSWER_TOKENS = 100_000


class Escalation(Record):
    """`POST /api/escalations`. The same `id` again gives the same answer."""

    id: Identifier  # of the device's interaction
    messages: list[Message] = Field(min_length=1, max_length=200)
    attempt: Text | None  # what the device answered; null where it could not
    model: Annotated[str, Field(min_length=1, max_length=200)]  # of the device, with its adapter's release
    consent: bool = False  # may question, attempt and answer be used for training
    max_tokens: Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)] | None = None  # of the swarm's answer

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's: the device's answer goes into 'attempt'")
        return messages


class Escalated(Record):
    """Answer to `POST /api/escalations`."""

    id: str  # as it was sent
    interaction_id: str  # the swarm's answer, for judging it
    response: str
    role: str | None
    strategy: str | None  # how the swarm came to it
    model: str | None
