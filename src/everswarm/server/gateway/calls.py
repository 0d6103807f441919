"""One call to the gateway, and its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from everswarm.llm.protocol import Chunk, Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.line import Ticket

CacheUse = Literal["auto", "on", "off"]


@dataclass(slots=True)
class Call:
    """What is asked, of whom, for whom, and how long it may wait."""

    payload: Payload  # in OpenAI's shape; its `model` is replaced by the endpoint's
    targets: Sequence[str]  # names of roles or models, the most wanted first
    user: str = ""  # whose earlier answers it may be given
    priority: Priority = Priority.INTERACTIVE
    wait_seconds: float | None = 0.0  # for a quota; None for as long as it takes
    cache: CacheUse = "auto"  # auto: at temperature 0
    interaction_id: str | None = None
    ticket: Ticket | None = field(default=None, repr=False)  # while it is on its way through the line


@dataclass(slots=True)
class Answered:
    """A whole answer, and who gave it."""

    endpoint: str
    model: str
    role: str | None
    response: dict[str, Any]  # a `chat.completion`
    cached: bool = False


@dataclass(slots=True)
class AnsweredStream:
    """An answer that has begun. Close `chunks` to end the work upstream."""

    endpoint: str
    model: str
    role: str | None
    chunks: AsyncGenerator[list[Chunk], None]
    cached: bool = False


def most_answer_tokens(payload: Payload) -> int | None:
    """Return the limit that a request sets; the larger of two, because endpoints differ in which one they heed."""
    limits = [limit for name in ("max_completion_tokens", "max_tokens") if (limit := payload.get(name))]
    return max(limits, default=None)
