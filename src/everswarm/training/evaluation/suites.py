"""The general suite: forty short pairs that no user's feedback is about. A drop here is forgetting."""

from __future__ import annotations

import json
from importlib import resources

from everswarm.schemas.base import Record
from everswarm.schemas.interaction import Message


class GeneralExample(Record):
    """One pair of the general suite."""

    id: str
    messages: list[Message]
    target: str


def general_suite() -> list[GeneralExample]:
    """Return the general suite, in the order of the file."""
    text = resources.files(__package__).joinpath("general.jsonl").read_text(encoding="utf-8")
    return [_from_line(json.loads(line)) for line in text.splitlines()]


def _from_line(row: dict[str, str]) -> GeneralExample:
    return GeneralExample(id=row["id"], messages=[Message(role="user", content=row["prompt"])], target=row["target"])
