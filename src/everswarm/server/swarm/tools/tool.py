"""What a tool is to the swarm, wherever it runs."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

Arguments = Mapping[str, Any]


class ToolFailedError(Exception):
    """A tool could not do what it was asked. The text is for the model and for the trace."""


@dataclass(frozen=True)
class Tool:
    """Something that a model may have done. Its result is text, and only ever data."""

    name: str  # as models call it: letters, digits, _ and -, at most 64
    description: str
    parameters: Mapping[str, Any]  # JSON schema of the arguments, an object
    run: Callable[[Arguments, str], Awaitable[str]]  # (arguments, user) to text; raises ToolFailedError
    allow_name: str = ""  # what an allow-list says: "calculator", or "server.tool"
    timeout_seconds: float = 10.0
    result_characters: int = 8000


def plain_name(name: str) -> str:
    """Return `name` with nothing in it that the name of a tool may not have."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_"


def strict_json(text: str) -> Any:
    """Return the JSON value that `text` says.

    Raises:
        ValueError: it is none; NaN and Infinity, which Python takes, are none.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(text: str) -> Any:
    raise ValueError(text)
