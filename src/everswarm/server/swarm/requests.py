"""Body and headers of `POST /v1/chat/completions`, in OpenAI's shape. Fields that we do not know pass through."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from everswarm.errors import BadRequestError
from everswarm.llm import wire
from everswarm.schemas.gateway import Priority
from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS
from everswarm.server.gateway import CacheUse
from everswarm.server.swarm.kinds import StrategyName

MAX_MESSAGES = 2000
MOST_TOKENS = 10**9  # that an answer may be asked for
MAX_CHOICES = 16  # answers to one request
LONGEST_WAIT_SECONDS = 3600.0  # that a reader may ask for

_HEADERS = (
    b"x-everswarm-priority",
    b"x-everswarm-wait-seconds",
    b"x-everswarm-cache",
    b"x-everswarm-strategy",
    b"x-everswarm-thread",
)
_CACHE_USES: dict[str, CacheUse] = {use: use for use in get_args(CacheUse)}
_STRATEGIES: dict[str, StrategyName] = {name: name for name in get_args(StrategyName)}


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
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
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


class Chat(NamedTuple):
    """A chat that was checked."""

    payload: dict[str, Any]  # as it was sent, for an endpoint; a stream always asks for the token counts
    streams: bool
    wants_usage: bool  # whether the stream should end with the token counts
    user: str | None


class Wishes(NamedTuple):
    """What the headers say of how a chat is to be served."""

    priority: Priority | None = None
    wait_seconds: float | None = None
    cache: CacheUse = "auto"
    strategy: StrategyName | None = None  # None: what the kind of the request takes
    thread: str | None = None  # "new", or the id of one


def read_chat(body: bytes) -> Chat:
    """Return the chat in `body`.

    Raises:
        RequestValidationError: it is none; names each field.
    """
    try:
        ChatRequest.model_validate_json(body)
    except ValidationError as error:
        wrong = [{**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)]
        raise RequestValidationError(wrong) from error
    payload: dict[str, Any] = wire.loads(body)
    options = payload.get("stream_options") or {}
    streams = bool(payload.get("stream"))
    if streams:
        payload["stream_options"] = {**options, "include_usage": True}
    return Chat(payload, streams, bool(options.get("include_usage")), payload.get("user"))


def read_wishes(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """Return what the `X-Everswarm-…` headers say.

    Raises:
        BadRequestError: one has a value that it cannot have.
    """
    found = {name: value.decode("latin-1").strip().lower() for name, value in headers if name in _HEADERS}
    if not found:
        return Wishes()
    return Wishes(
        priority=_priority(found.get(_HEADERS[0])),
        wait_seconds=_wait_seconds(found.get(_HEADERS[1])),
        cache=_cache(found.get(_HEADERS[2], "auto")),
        strategy=_strategy(found.get(_HEADERS[3])),
        thread=_thread(found.get(_HEADERS[4])),
    )


def _priority(text: str | None) -> Priority | None:
    if text is None:
        return None
    try:
        return Priority(text)
    except ValueError:
        raise BadRequestError(
            f"X-Everswarm-Priority is one of {', '.join(Priority)}, not {text[:40]!r}. Leave it out for interactive."
        ) from None


def _wait_seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT_SECONDS:
        raise BadRequestError(
            f"X-Everswarm-Wait-Seconds is 0 to {LONGEST_WAIT_SECONDS:.0f}, not {text[:40]!r}. "
            "What may take longer goes to /v1/batches."
        )
    return seconds


def _cache(text: str) -> CacheUse:
    if text not in _CACHE_USES:
        raise BadRequestError(f"X-Everswarm-Cache is {', '.join(_CACHE_USES)}, not {text[:40]!r}.")
    return _CACHE_USES[text]


def _strategy(text: str | None) -> StrategyName | None:
    if text is None or text == "auto":
        return None
    if text not in _STRATEGIES:
        raise BadRequestError(
            f"X-Everswarm-Strategy is auto, {', '.join(_STRATEGIES)}, not {text[:40]!r}. Leave it out for auto."
        )
    return _STRATEGIES[text]


def _thread(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"new|[0-9a-f-]{36}", text):
        raise BadRequestError(
            f"X-Everswarm-Thread is 'new' or the id of a thread, not {text[:40]!r}. GET /api/threads lists yours."
        )
    return text
