"""The body of `POST /v1/chat/completions`, in OpenAI's shape. Fields that we do not know pass through."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS

MAX_MESSAGES = 2000
MAX_CHOICES = 16  # answers to one request


class Passing(BaseModel):
    """Checks what it knows, strictly, and lets the rest through."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class ChatMessage(Passing):
    """One turn. `content` is text, or parts of which only the text is stored."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)] | list[dict[str, Any]] | None = None


class StreamOptions(Passing):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class ChatRequest(Passing):
    """A chat. `model` is `everswarm` (the swarm decides), a role, or a full model name."""

    model: Annotated[str, Field(min_length=1, max_length=200)] = "everswarm"
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    user: Annotated[str, Field(max_length=200)] | None = None  # for whom an application asks; heeded of admins only

    @property
    def wants_usage(self) -> bool:
        """Whether the stream should end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def payload(self) -> dict[str, Any]:
        """Return the body as it was sent, for an endpoint; a stream always asks for the token counts."""
        body = self.model_dump(exclude_unset=True)
        if self.stream:
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        return body
