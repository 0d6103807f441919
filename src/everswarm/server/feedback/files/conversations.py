"""Conversations of other programs as turns of text, and the answers in them that can be judged."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.feedback.reading import MESSAGES_KEPT, identifier_of, printable, read_judged_interaction

Role = Literal["system", "user", "assistant", "tool"]
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_call", "function_response", "observation", "tool_response"), "tool"),
}
_IDS = uuid.UUID("9d6c9b3e-7a57-4a0f-8a53-0d6f6b1f2c55")  # makes ids from content
_MILLISECONDS_FROM = 100_000_000_000  # as seconds the year 5138; as milliseconds 1973
_DIGITS_BEHIND_A_GIVEN_ID = 12


class Defaults(NamedTuple):
    """What a format does not say."""

    device_id: str
    timestamp: datetime
    consent: bool = False
    liked: bool | None = None


class Turn(NamedTuple):
    """One message as text. `wanted`: it may be learnt from; an answer with weight 0 may not."""

    role: Role
    text: str
    wanted: bool = True


class Answer(NamedTuple):
    """An answer, and the turns before it, of which the last is a question."""

    before: list[Turn]
    text: str


def turns_of(messages: Any, *, role_key: str, text_key: str, where: str) -> list[Turn]:
    """Return the turns of a list of messages that are not empty.

    Raises:
        BadRequestError: it is no such list, or a role is not known.
    """
    if not isinstance(messages, list) or not messages:
        raise BadRequestError(f"{where}: should be a list of messages that is not empty")
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise BadRequestError(f"{where}[{index}]: should be an object with {role_key!r} and {text_key!r}")
        role = _ROLES.get(str(message.get(role_key)).lower())
        if role is None:
            raise BadRequestError(f"{where}[{index}].{role_key}: is no role that is known: {_short(message, role_key)}")
        if message.get("tool_calls") or message.get("function_call"):
            role = "tool"
        text = text_of(message.get(text_key), where=f"{where}[{index}].{text_key}")
        if text or role == "tool":
            turns.append(Turn(role, text, message.get("weight") != 0))
    return turns


def text_of(content: Any, *, where: str) -> str:
    """Return the text of a message's content: text, or parts of which those that are text are joined.

    Raises:
        BadRequestError: it is neither.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return printable("\n".join(part for part in parts if isinstance(part, str)))
    raise BadRequestError(f"{where}: should be text, or a list of parts")


def answers_in(turns: Sequence[Turn]) -> Iterator[Answer]:
    """Yield each answer that follows a question at once; one that rests on a tool, which a student lacks, does not."""
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and turn.wanted and index and turns[index - 1].role == "user":
            yield Answer([before for before in turns[:index] if before.role != "tool"], turn.text)


def interaction_of(
    answer: Answer, defaults: Defaults, *, given_id: Any = None, model: Any = None, **fields: Any
) -> JudgedInteraction:
    """Return an interaction of another program; its id comes from what is said in it, so it is always the same.

    Raises:
        BadRequestError: a text is too long, or a field is wrong.
    """
    messages = [{"role": turn.role, "content": turn.text} for turn in answer.before][-MESSAGES_KEPT:]
    record = {
        "id": _id_of(messages, answer.text, given_id),
        "device_id": defaults.device_id,
        "timestamp": defaults.timestamp,
        "consent": defaults.consent,
        "liked": defaults.liked,
        "messages": messages,
        "response": answer.text,
        "model": printable(model[:200]) if isinstance(model, str) else None,
    }
    return read_judged_interaction(record | fields)


def moment_of(item: Mapping[str, Any], names: Sequence[str], *, otherwise: datetime) -> Any:
    """Return the first of the fields `names` that is there: ISO text, or Unix seconds or milliseconds as a moment."""
    value = next((item[name] for name in names if item.get(name) not in (None, "")), otherwise)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MILLISECONDS_FROM:
        return datetime.fromtimestamp(value, tz=UTC)
    return value


def _id_of(messages: Sequence[Mapping[str, str]], response: str, given: Any) -> str:
    canonical = json.dumps([messages, response], ensure_ascii=False, sort_keys=True)
    made = uuid.uuid5(_IDS, canonical)
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "":
        return str(made)
    # files number their conversations from 0, so that a given id alone would be another's
    return f"{identifier_of(printable(str(given)))[:180]}/{made.hex[:_DIGITS_BEHIND_A_GIVEN_ID]}"


def _short(message: Mapping[str, Any], key: str) -> str:
    return "it is missing" if key not in message else repr(message[key])[:40]
