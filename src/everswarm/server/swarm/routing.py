"""Who answers when nobody in particular was asked for: decided by rules over the text, without a token. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SWARM = "everswarm"  # the model name that leaves the choice to us
PRIMARY, COORDINATOR, SPECIALIST = "primary", "coordinator", "specialist"

_CODE = re.compile(
    r"```|^\s*(?:def|class|import|from|func|fn|public|#include)\s+\S|\bselect\b.+\bfrom\b|\w\(\)|=>|;\s*$"
    r"|\b(?:python|javascript|typescript|java|rust|golang|c\+\+|sql|regex|bash|dockerfile|stack ?trace|traceback"
    r"|unit tests?|refactor|debug|compiler?|segfault|algorithm)\b",
    re.IGNORECASE | re.MULTILINE,
)
_PLAN = re.compile(
    r"\b(?:plan|roadmap|schedule|itinerary|step[ -]by[ -]step|break (?:it|this|that) down|milestones?|organi[sz]e"
    r"|pros and cons|first\b.+\bthen)\b",
    re.IGNORECASE | re.DOTALL,
)
_LIST_ITEM = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+\S", re.MULTILINE)
PARTS = 3  # questions or list items that make a request one of many parts


class Route(NamedTuple):
    """The role that answers, and the strategy: `single` is one call."""

    role: str
    strategy: str
    reason: str


def route(messages: Sequence[Mapping[str, Any]]) -> Route:
    """Choose by the last thing that the user said: code → specialist, a plan or many parts → coordinator."""
    text = next((_text(message) for message in reversed(messages) if message.get("role") == "user"), "")
    if _CODE.search(text):
        return Route(SPECIALIST, "single", "code")
    if text.count("?") >= PARTS or len(_LIST_ITEM.findall(text)) >= PARTS:
        return Route(COORDINATOR, "single", "many parts")
    if _PLAN.search(text):
        return Route(COORDINATOR, "single", "planning")
    return Route(PRIMARY, "single", "anything else")


def targets(model: str, messages: Sequence[Mapping[str, Any]], served: Sequence[str]) -> list[str]:
    """Return what to ask the gateway for, the most wanted first: the swarm may fall back to any role."""
    if model != SWARM:
        return [model]
    first = route(messages).role
    return [role for role in dict.fromkeys([first, PRIMARY, COORDINATOR, SPECIALIST]) if role in served] or [first]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content or ""
