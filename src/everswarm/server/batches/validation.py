"""The input of a batch: read line by line into items, or refused with the lines that are wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from everswarm.server.batches.objects import ENDPOINT

MAX_REQUESTS = 50_000  # of one batch
MAX_LINE_BYTES = 2 * 1024 * 1024  # as a chat may have
MAX_ERRORS = 50  # that a batch names; reading ends there
CUSTOM_ID_CHARACTERS = 200

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Item(NamedTuple):
    """One request; `number` is its line, from 1."""

    number: int
    custom_id: str
    request: str  # the body, JSON


class LineError(NamedTuple):
    """What is wrong with the input, as a batch says it in `errors.data`."""

    line: int | None
    code: str
    message: str
    param: str | None = None


def read_items(pieces: Iterable[bytes]) -> Iterator[Item | LineError]:
    """Yield what each line is; blank lines are nothing. Ends after `MAX_ERRORS` errors, or over `MAX_REQUESTS`."""
    seen: dict[str, int] = {}
    errors = 0
    for number, line in enumerate(split_lines(pieces), start=1):
        if line is not None and not line.strip():
            continue
        if len(seen) >= MAX_REQUESTS:
            yield LineError(
                number, "too_many_requests", f"A batch has at most {MAX_REQUESTS:,} requests. Split the file."
            )
            return
        found = _check_line(number, line, seen)
        yield found
        errors += isinstance(found, LineError)
        if errors >= MAX_ERRORS:
            return
    if not seen and not errors:
        yield LineError(None, "empty_file", "The input file has no requests. Each line is one, as JSON.")


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes | None]:
    """Yield the lines without their ends; None for one over `MAX_LINE_BYTES`, of which nothing is kept."""
    waiting, too_long, first = bytearray(), False, True
    for piece in pieces:
        start = 0
        if first:
            start, first = len(_BYTE_ORDER_MARK) if piece.startswith(_BYTE_ORDER_MARK) else 0, False
        while (end := piece.find(b"\n", start)) >= 0:
            waiting += piece[start:end]
            yield None if too_long or len(waiting) > MAX_LINE_BYTES else bytes(waiting)
            waiting.clear()
            start, too_long = end + 1, False
        waiting += piece[start:]
        if len(waiting) > MAX_LINE_BYTES:
            waiting.clear()
            too_long = True
    if waiting or too_long:
        yield None if too_long else bytes(waiting)


def _check_line(number: int, line: bytes | None, seen: dict[str, int]) -> Item | LineError:
    """Return the item of one line, and note its `custom_id` in `seen`."""
    if line is None:
        return LineError(number, "line_too_long", f"This line has more than {MAX_LINE_BYTES:,} bytes.")
    try:
        asked = orjson.loads(line)
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        return LineError(number, "invalid_json_line", "This line is not parseable as a valid JSON object.")
    wrong = _wrong_field(asked)
    if wrong is not None:
        code, message, param = wrong
        return LineError(number, code, message, param)
    custom_id: str = asked["custom_id"]
    before = seen.setdefault(custom_id, number)
    if before != number:
        return LineError(
            number,
            "duplicate_custom_id",
            f"The custom_id of this request is that of line {before}; each is its own.",
            "custom_id",
        )
    return Item(number, custom_id, json.dumps(asked["body"], separators=(",", ":")))


def _wrong_field(asked: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return code, message and field of the first thing that is wrong."""
    for name in ("custom_id", "method", "url", "body"):
        if name not in asked:
            return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
    custom_id = asked["custom_id"]
    if not (isinstance(custom_id, str) and 1 <= len(custom_id) <= CUSTOM_ID_CHARACTERS and custom_id.isprintable()):
        limit = f"custom_id is text of 1 to {CUSTOM_ID_CHARACTERS} printable characters."
        return "invalid_custom_id", limit, "custom_id"
    if asked["method"] != "POST":
        return "invalid_method", "The method of a request is POST.", "method"
    if asked["url"] != ENDPOINT:
        return "mismatched_url", f"The url of a request is the endpoint of its batch, {ENDPOINT}.", "url"
    if not isinstance(asked["body"], dict):
        return "invalid_body", "The body of a request is a JSON object, as POST /v1/chat/completions takes it.", "body"
    return None
