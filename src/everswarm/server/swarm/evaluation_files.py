"""Reads the questions of `everswarm swarm eval`: JSON lines, each a question with what is right.

Takes a path, gives distinct questions. A broken line is reported with its number; the rest is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, cast

from everswarm.errors import BadRequestError
from everswarm.server.feedback.reading import LINE_BYTES, numbered_lines, printable, text_turns
from everswarm.server.swarm.kinds import Kind
from everswarm.settings import KINDS

ERRORS_KEPT = 20  # with their text; all are counted
GOOD_RATING = 5  # an answer that got it counts as right
QUESTION_NAMES = ("messages", "prompt", "question", "instruction", "input")
REFERENCE_NAMES = ("correction", "reference", "answer", "output", "target", "ideal")
EXAMPLE = '{"question": "What is 17 + 25?", "reference": "42", "kind": "mathematics"}'

Messages = list[dict[str, str]]
KindOf = Callable[[Messages], Kind]


class Prompt(NamedTuple):
    """One question, and what a good answer says."""

    number: int  # from 1, in the order in which they are asked
    line: int  # of the file, from 1
    messages: Messages  # as a chat has them; the last is the user's
    references: tuple[str, ...]  # any of them is right
    kind: Kind

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]


class LineError(NamedTuple):
    """Why a line cannot be used."""

    line: int  # from 1
    message: str


class PromptFile(NamedTuple):
    """What a file holds. `read` = distinct questions + `repeated` + `unjudged` + `error_count`."""

    prompts: list[Prompt]  # those that are asked
    read: int  # lines that are not blank
    distinct: int  # questions with a reference
    repeated: int  # lines whose question was there already
    unjudged: int  # judged interactions that say nothing of what is right
    errors: list[LineError]  # the first ones
    error_count: int


def read_prompts(
    path: Path, *, kind_of: KindOf, limit: int | None = None, shuffle_seed: int | None = None
) -> PromptFile:
    """Read the questions of `path`; of several lines with one question the first counts.

    Args:
        path: of JSON lines: our import format, or a question (`messages`, `prompt`, `question`, `instruction`,
            `input`) with a reference (`reference`, `answer`, `output`, `target`, `ideal`).
        kind_of: says what a conversation is about where its line has no `kind`.
        limit: how many distinct questions are used; None for all.
        shuffle_seed: of the order in which they are taken; None for that of the file.

    Raises:
        BadRequestError: the file cannot be opened, or no line of it can be used.
    """
    found: dict[str, tuple[int, _Line]] = {}
    errors: list[LineError] = []
    read = repeated = unjudged = error_count = 0
    for number, raw in _lines_of(path):
        read += 1
        try:
            line = _line_of(raw)
        except BadRequestError as error:
            error_count += 1
            errors += [LineError(number, str(error))] if len(errors) < ERRORS_KEPT else []
            continue
        key = json.dumps(line.messages)
        repeated += key in found and bool(line.references)
        unjudged += not line.references
        if line.references:
            found.setdefault(key, (number, line))
    if not found:
        raise BadRequestError(_nothing(path, read, unjudged, errors))
    taken = list(found.values())
    if shuffle_seed is not None:
        Random(shuffle_seed).shuffle(taken)
    prompts = [
        Prompt(position, number, line.messages, line.references, line.kind or kind_of(line.messages))
        for position, (number, line) in enumerate(taken[:limit], start=1)
    ]
    return PromptFile(prompts, read, len(found), repeated, unjudged, errors, error_count)


class _Line(NamedTuple):
    messages: Messages
    references: tuple[str, ...]  # none: nothing says what is right
    kind: Kind | None


def _nothing(path: Path, read: int, unjudged: int, errors: list[LineError]) -> str:
    why = f" {unjudged} have neither a correction nor a rating of {GOOD_RATING}." if unjudged else ""
    first = f" Line {errors[0].line}: {errors[0].message}." if errors else ""
    return f"None of the {read} lines of {path} can be asked and judged.{why}{first} A line looks like this: {EXAMPLE}"


def _lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadRequestError(
            f"The file {path} cannot be read: {error.strerror}. Give the path of a JSON lines file."
        ) from error
    with file:
        yield from numbered_lines(file)


def _line_of(raw: bytes) -> _Line:
    if len(raw) > LINE_BYTES:
        raise BadRequestError(f"longer than {LINE_BYTES // 1024 // 1024} MB; one question a line, each below that")
    try:
        item = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequestError(f"not UTF-8 text at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise BadRequestError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise BadRequestError("not JSON that can be read: nested too deeply, or a number is too long") from error
    if not isinstance(item, dict):
        raise BadRequestError(f"a JSON object is needed, such as {EXAMPLE}")
    messages, answer = _messages_of(item)
    return _Line(messages, _references_of(item, answer), _kind_of(item))


def _messages_of(item: Mapping[str, Any]) -> tuple[Messages, str]:
    """Return the conversation up to the user's last turn, and the answer that stood after it, if any."""
    name = next((name for name in QUESTION_NAMES if item.get(name) not in (None, "", [])), None)
    if name is None:
        raise BadRequestError(f"has no question: one of {', '.join(QUESTION_NAMES)} is needed")
    value = item[name]
    if isinstance(value, str):
        more = item.get("input") if name == "instruction" else None
        value = [{"role": "user", "content": f"{value}\n\n{more}" if isinstance(more, str) and more else value}]
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRequestError(f'{name} is a text, or a list of {{"role": …, "content": …}}')
    turns = text_turns(value)
    answer = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise BadRequestError(f"{name} does not end with what a user asks")
    return turns, answer


def _references_of(item: Mapping[str, Any], answer: str) -> tuple[str, ...]:
    """Return what is right; nothing where a judged interaction does not say."""
    for name in REFERENCE_NAMES:
        value = item.get(name)
        texts = [str(text) for text in (value if isinstance(value, list) else [value]) if _is_text(text)]
        if found := tuple(printable(text) for text in texts if text.strip()):
            return found
    if "rating" in item or "response" in item or "correction" in item:
        rating, response = item.get("rating"), item.get("response")
        is_good = isinstance(rating, int | float) and rating >= GOOD_RATING
        return (printable(response),) if is_good and isinstance(response, str) and response.strip() else ()
    if answer.strip():
        return (answer,)
    raise BadRequestError(f"has no reference: one of {', '.join(REFERENCE_NAMES)} is needed")


def _is_text(value: object) -> bool:
    """Whether it is a text, or a number, which is one too."""
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))


def _kind_of(item: Mapping[str, Any]) -> Kind | None:
    kind = item.get("kind")
    if kind is None or kind == "":
        return None
    if kind not in KINDS:
        raise BadRequestError(f"{str(kind)[:40]!r} is no kind of request; there are {', '.join(KINDS)}")
    return cast(Kind, kind)
