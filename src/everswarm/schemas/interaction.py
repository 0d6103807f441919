"""A request to a model, its answer, and what a person thought of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from everswarm.schemas.base import Identifier, Record, Timestamp

MAX_TEXT_CHARACTERS = 100_000  # a message, an answer, a correction


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT_CHARACTERS)


Rating = Annotated[int, Field(ge=1, le=5, strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,4})?$")]  # BCP 47: en, pt-BR


class JudgedInteraction(Record):
    """One interaction with the judgements on it: the import format, what devices upload, and what a cycle reads."""

    schema_version: Literal[1] = 1
    id: Identifier
    device_id: Identifier  # who judged: a device, or a user of the web
    timestamp: Timestamp
    messages: list[Message] = Field(min_length=1, max_length=200)
    response: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)] | None = None
    model: Annotated[str, Field(max_length=200)] | None = None
    rating: Rating | None = None
    correction: Text | None = None
    comment: Text | None = None
    liked: bool | None = None  # a thumb, up or down, where there are no stars
    better_than: list[Text] = Field(default_factory=list, max_length=20)  # other answers that lost a vote against it
    regenerated: bool = False  # another answer was asked for: a weak signal, never learnt from
    copied: bool = False  # the answer was copied: another
    judge_score: float | None = Field(default=None, ge=0, le=1)  # of a model that judged
    language: Language | None = None
    consent: bool = False  # may it be used for training
    keep_days: int | None = Field(default=None, ge=1, le=36_500)  # after the timestamp; then it is erased

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> JudgedInteraction:
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's: the answer goes into 'response'")
        return self


class FeedbackRequest(Record):
    """`POST /api/feedback`: a judgement on one interaction of this server. At least one judgement is needed."""

    id: Annotated[Identifier, Field(max_length=36)] | None = None  # made by the client, so that it may send it again
    interaction_id: Identifier
    rating: Rating | None = None
    correction: Text | None = None
    comment: Text | None = None
    liked: bool | None = None  # a thumb, up or down
    preferred_over: Identifier | None = None  # a pairwise vote: this answer was better than that interaction's
    regenerated: bool = False
    copied: bool = False
    consent: bool = False
    keep_days: int | None = Field(default=None, ge=1, le=36_500)  # from the interaction on; then it is erased

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        said = (self.correction, self.comment, self.preferred_over, self.regenerated, self.copied)
        if self.rating is None and self.liked is None and not any(said):
            raise ValueError(
                "send at least one of: rating (1 to 5), liked (true or false), correction, comment, preferred_over, "
                "regenerated, copied"
            )
        return self


class FeedbackAccepted(Record):
    """Answer to `POST /api/feedback`."""

    status: Literal["accepted"] = "accepted"
    feedback_id: str


class InteractionView(Record):
    """One stored interaction, as its user sees it."""

    id: str
    created_at: Timestamp
    role: str | None
    model: str | None
    messages: list[Message]
    response: str | None
    state: str
