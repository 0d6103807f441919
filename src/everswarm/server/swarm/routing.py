"""Who answers when nobody in particular was asked for: decided by rules over the text, without a token. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SWARM = "everswarm"  # the model name that leaves the choice to us
PRIMARY, COORDINATOR, SPECIALIST = "primary", "coordinator", "specialist"

_WORD = re.compile(r"[a-z]+")
_CODE_WORDS = frozenset(
    [
        "python",
        "javascript",
        "typescript",
        "java",
        "rust",
        "golang",
        "sql",
        "regex",
        "bash",
        "dockerfile",
        "stacktrace",
        "traceback",
        "refactor",
        "debug",
        "compile",
        "compiler",
        "segfault",
        "algorithm",
    ]
)
_CODE_MARKS = ("```", "=>", "c++", "stack trace", "unit test")
_LINE_STARTS = frozenset(["def", "class", "import", "from", "func", "fn", "public", "include"])
_CODE_LINE = re.compile(
    r"^[ \t]*(?:def|class|import|from|func|fn|public|#include)[ \t]+\S|\w\(\)|;[ \t]*$", re.MULTILINE
)
_QUERY = re.compile(r"\bselect\b.{1,200}?\bfrom\b")
_PLAN_WORDS = frozenset(
    [
        "plan",
        "roadmap",
        "schedule",
        "itinerary",
        "step",
        "break",
        "milestone",
        "milestones",
        "organise",
        "organize",
        "pros",
        "first",
    ]
)
_PLAN = re.compile(
    r"\b(?:plan|roadmap|schedule|itinerary|step[ -]by[ -]step|break (?:it|this|that) down|milestones?|organi[sz]e"
    r"|pros and cons|first\b.{1,200}?\bthen)\b",
    re.DOTALL,
)
_LIST_ITEM = re.compile(r"^[ \t]*(?:\d{1,3}[.)]|[-*•])[ \t]+\S", re.MULTILINE)
READ_CHARACTERS = 4000  # of a question, by which it is decided who answers
PARTS = 3  # questions or list items that make a request one of many parts


class Route(NamedTuple):
    """The role that answers, and the strategy: `single` is one call."""

    role: str
    strategy: str
    reason: str


def route(messages: Sequence[Mapping[str, Any]]) -> Route:
    """Choose by the last thing that the user said: code → specialist, a plan or many parts → coordinator."""
    text = next((_text(message) for message in reversed(messages) if message.get("role") == "user"), "")
    text = text[:READ_CHARACTERS]
    lowered = text.lower()
    words = set(_WORD.findall(lowered))  # what most texts have none of is looked for among them, which is quick
    if _is_code(lowered, words):
        return Route(SPECIALIST, "single", "code")
    if text.count("?") >= PARTS or (text.count("\n") >= PARTS - 1 and len(_LIST_ITEM.findall(text)) >= PARTS):
        return Route(COORDINATOR, "single", "many parts")
    if words & _PLAN_WORDS and _PLAN.search(lowered):
        return Route(COORDINATOR, "single", "planning")
    return Route(PRIMARY, "single", "anything else")


def targets(model: str, messages: Sequence[Mapping[str, Any]], served: Sequence[str]) -> list[str]:
    """Return what to ask the gateway for, the most wanted first: the swarm may fall back to any role."""
    if model != SWARM:
        return [model]
    first = route(messages).role
    return [role for role in dict.fromkeys([first, PRIMARY, COORDINATOR, SPECIALIST]) if role in served] or [first]


def _is_code(lowered: str, words: set[str]) -> bool:
    if words & _CODE_WORDS or any(mark in lowered for mark in _CODE_MARKS):
        return True
    if (words & _LINE_STARTS or "()" in lowered or ";" in lowered) and _CODE_LINE.search(lowered):
        return True
    return "select" in words and "from" in words and _QUERY.search(lowered) is not None


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content or ""
