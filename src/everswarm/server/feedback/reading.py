"""From JSON that somebody sent to a record, or to a sentence that says what is wrong with it. No SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, BinaryIO

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import MAX_TEXT_CHARACTERS, JudgedInteraction

PROBLEMS_SHOWN = 3  # of one record; the rest is counted
LINE_BYTES = 2 * 1024 * 1024  # a longer line is not read
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FOUND_CHARACTERS = 40  # of a wrong value, when it is quoted
SENTENCE_CHARACTERS = 400  # about one field
IDENTIFIER_CHARACTERS = 200
MESSAGES_KEPT = 200  # the last ones of a conversation
TEXT_ROLES: dict[str, str] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_judged_interaction(item: Mapping[str, Any]) -> JudgedInteraction:
    """Return the record that `item` holds.

    Raises:
        BadRequestError: it is not one; the text names each field and what is wrong with it.
    """
    try:
        return JudgedInteraction.model_validate(dict(item))
    except ValidationError as error:
        raise BadRequestError(_explain(error)) from error


def numbered_lines(file: BinaryIO, *, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers. One that is too long is cut and stays too long."""
    number = first - 1
    while line := file.readline(LINE_BYTES + 2):
        number += 1
        end = line
        while end and not end.endswith(b"\n"):
            end = file.readline(LINE_BYTES)
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        line = line.rstrip(b"\r\n")
        if line.strip():
            yield number, line


def text_turns(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the turns of an OpenAI conversation that are text, as they are stored: what can be judged and learnt.

    Parts of a message are joined; calls and results of tools, and empty turns, are left out.
    """
    turns = []
    for message in messages:
        role = TEXT_ROLES.get(str(message.get("role")))
        content = _text(message.get("content"))
        if role is not None and content:
            turns.append({"role": role, "content": printable(content[:MAX_TEXT_CHARACTERS])})
    return turns[-MESSAGES_KEPT:]


@lru_cache(maxsize=4096)  # the same people ask again
def identifier_of(name: str) -> str:
    """Return `name` as an identifier, which records need: what it may not hold becomes a dash."""
    cleaned = re.sub(r"[^A-Za-z0-9._:@/+-]+", "-", name)[:IDENTIFIER_CHARACTERS]
    return cleaned if cleaned[:1].isalnum() else f"u{cleaned}"[:IDENTIFIER_CHARACTERS]


def storable(text: str | None) -> str | None:
    """Return `text` without the NUL character, which Postgres cannot store."""
    return None if text is None else text.replace("\x00", "")


def printable(text: str) -> str:
    """Return `text` with what UTF-8 cannot say (half a surrogate pair, which JSON can) as question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
    return "\n".join(part for part in parts if isinstance(part, str))


def _explain(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    sentences = [_sentence(problem)[:SENTENCE_CHARACTERS] for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        sentences.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
    return printable("; ".join(sentences))


def _sentence(problem: ErrorDetails) -> str:
    where = _path(problem["loc"])
    kind = problem["type"]
    if kind == "missing":
        return f"{where}: is missing"
    if kind == "extra_forbidden":
        known = ", ".join(JudgedInteraction.model_fields)
        return (
            f"{where}: is not a field of the format (those are: {known})" if "." not in where else f"{where}: unknown"
        )
    if kind == "value_error":
        text = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {text}" if where else text
    text = _wish(problem)
    found = problem["input"]
    quoted = f", not {_short(found)}" if found is None or isinstance(found, str | int | float) else ""
    return f"{where}: {text}{quoted}"


def _wish(problem: ErrorDetails) -> str:
    """Say what the value should be."""
    if problem["loc"] == ("rating",):
        return "should be a whole number from 1 to 5"
    if problem["type"] == "string_pattern_mismatch":  # only identifiers have a pattern
        return "may hold letters, digits and . _ : @ / + - only, and begins with a letter or a digit"
    return problem["msg"].removeprefix("Input ").replace("String should", "should").replace("List should", "should")


def _path(location: tuple[int | str, ...]) -> str:
    """Write ("messages", 0, "content") as messages[0].content."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= FOUND_CHARACTERS else text[: FOUND_CHARACTERS - 1] + "…"
