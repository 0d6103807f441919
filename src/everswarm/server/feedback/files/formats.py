"""The formats that files of judgements come in: ours, OpenAI's, ShareGPT's, Open WebUI's. One record in, ours out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.feedback.files import open_webui
from everswarm.server.feedback.files.conversations import (
    Answer,
    Defaults,
    Turn,
    answers_in,
    interaction_of,
    moment_of,
    text_of,
    turns_of,
)
from everswarm.server.feedback.reading import read_judged_interaction

Format = Literal["everswarm", "openai", "sharegpt", "open-webui"]
FORMATS: tuple[Format, ...] = get_args(Format)
_MOMENTS = ("timestamp", "created_at", "create_time", "created")
MOST_TURNS = 1000  # of a conversation that becomes one interaction an answer, each with what was said before
_OURS_ONLY = frozenset(JudgedInteraction.model_fields) - {"id", "messages", "model", "timestamp", "language"}


def format_of(item: Mapping[str, Any]) -> Format | None:
    """Return the format that one record shows; None where it could be any."""
    if "snapshot" in item or {"data", "meta", "type"} <= item.keys() or {"chat", "title"} <= item.keys():
        return "open-webui"
    if "conversations" in item or "conversation" in item:
        return "sharegpt"
    if "device_id" in item or ("messages" in item and not _OURS_ONLY.isdisjoint(item)):
        return "everswarm"
    if "messages" in item or {"prompt", "completion"} <= item.keys():
        return "openai"
    return None


def read_record(item: Mapping[str, Any], form: Format, defaults: Defaults) -> list[JudgedInteraction]:
    """Return the interactions in one record; `defaults` hold for what a format of others does not say.

    Raises:
        BadRequestError: it is not of that format; the text says what is wrong.
    """
    return _READERS[form](item, defaults)


def _read_ours(item: Mapping[str, Any], defaults: Defaults) -> list[JudgedInteraction]:
    return [read_judged_interaction(item)]


def _read_openai(item: Mapping[str, Any], defaults: Defaults) -> list[JudgedInteraction]:
    """One interaction: the last answer with weight. Lines of prompt and completion are read as such."""
    if "messages" in item:
        turns = turns_of(item["messages"], role_key="role", text_key="content", where="messages")
    elif "prompt" in item and "completion" in item:
        turns = [*_side(item, "prompt", "user"), *_side(item, "completion", "assistant")]
    else:
        raise BadRequestError("messages: is missing; an OpenAI line has 'messages', or 'prompt' and 'completion'")
    answers = [] if item.get("weight") == 0 else list(answers_in(turns))
    if not answers:
        raise BadRequestError(
            "holds no answer to judge: an assistant's text that follows the user's, and has no weight 0"
        )
    return [_interaction(item, answers[-1], defaults)]


def _read_sharegpt(item: Mapping[str, Any], defaults: Defaults) -> list[JudgedInteraction]:
    """One interaction for each answer, with the conversation before it."""
    name = "conversations" if "conversations" in item else "conversation"
    found = item.get(name)
    if isinstance(found, list) and len(found) > MOST_TURNS:
        raise BadRequestError(f"{name}: has {len(found)} turns, at most {MOST_TURNS} are read; split the conversation")
    first = found[0] if isinstance(found, list) and found and isinstance(found[0], Mapping) else {}
    role_key, text_key = ("role", "content") if "role" in first else ("from", "value")
    turns = turns_of(found, role_key=role_key, text_key=text_key, where=name)
    if system := text_of(item.get("system"), where="system"):
        turns = [Turn("system", system), *turns]
    answers = list(answers_in(turns))
    if not answers:
        raise BadRequestError("holds no answer to judge: a text from gpt that follows one from human")
    return [_interaction(item, answer, defaults) for answer in answers]


def _interaction(item: Mapping[str, Any], answer: Answer, defaults: Defaults) -> JudgedInteraction:
    timestamp = moment_of(item, _MOMENTS, otherwise=defaults.timestamp)
    return interaction_of(answer, defaults, given_id=item.get("id"), model=item.get("model"), timestamp=timestamp)


def _side(item: Mapping[str, Any], name: str, role: Literal["user", "assistant"]) -> list[Turn]:
    if isinstance(item[name], str):
        return [Turn(role, text_of(item[name], where=name))]
    return turns_of(item[name], role_key="role", text_key="content", where=name)


_READERS: dict[Format, Callable[[Mapping[str, Any], Defaults], list[JudgedInteraction]]] = {
    "everswarm": _read_ours,
    "openai": _read_openai,
    "sharegpt": _read_sharegpt,
    "open-webui": open_webui.read_feedback,
}
