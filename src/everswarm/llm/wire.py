"""JSON as it travels to and from models: quick, and patient with what upstreams get wrong."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes | memoryview) -> Any:
    """Return what `data` says. Half characters, NaN and bytes that are no UTF-8 are read as well as they can be.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(bytes(data).decode("utf-8", "replace"))


def dumps(value: Any) -> bytes:
    """Return `value` as compact JSON in UTF-8; half a character, which UTF-8 cannot say, is escaped."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()
