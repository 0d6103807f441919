"""From the bytes of one record to a JSON object, or to a sentence that says what is wrong with them."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from everswarm.errors import BadRequestError

IDENTIFIERS = frozenset({"id", "device_id"})  # not cleaned: two different ones must not become the same
_MAY_HOLD_CONTROLS = re.compile(rb"\\u00(?:[01]|7[fF])|\\[bf]|\x7f")
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all of C0 but tab and ends of lines, and DEL


class ReadObject(NamedTuple):
    """One JSON object, and how many control characters were taken out of its texts."""

    value: dict[str, Any]
    controls: int


def read_object(data: bytes) -> ReadObject:
    """Return the JSON object that `data` holds, without control characters.

    Raises:
        BadRequestError: it is not UTF-8, not JSON, no object, or has a key twice.
    """
    try:
        found = _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"not UTF-8 text at byte {error.start + 1} of the line; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise BadRequestError(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in …
        raise BadRequestError("not JSON that can be read: nested too deeply, or a number is too long") from error
    if not isinstance(found, dict):
        raise BadRequestError(f'a JSON object is needed, such as {{"id": …}}, not {_kind(found)}')
    return _cleaned(found) if _MAY_HOLD_CONTROLS.search(data) else ReadObject(found, 0)


def _cleaned(item: dict[str, Any]) -> ReadObject:
    removed = 0

    def clean(value: Any) -> Any:
        nonlocal removed
        if isinstance(value, str):
            text, count = _CONTROLS.subn("", value)
            removed += count
            return text
        if isinstance(value, list):
            return [clean(one) for one in value]
        if isinstance(value, dict):
            return {key: one if key in IDENTIFIERS else clean(one) for key, one in value.items()}
        return value

    try:
        return ReadObject(clean(item), removed)
    except RecursionError as error:
        raise BadRequestError("not JSON that can be read: nested too deeply") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise BadRequestError(f"the key {double[:40]!r} comes twice in one object; keep the one that is meant")
    return found


def _refuse_constant(name: str) -> Any:
    raise BadRequestError(f"not JSON: {name} is no number; write null where a value is not known")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)


def _kind(item: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(item), "a number")
