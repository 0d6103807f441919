"""What becomes of one judged interaction in each format that goes out. Pure; each gives the lines of one record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from everswarm.schemas.dataset import FrozenInteraction
from everswarm.schemas.interaction import JudgedInteraction

ExportFormat = Literal["jsonl", "parquet", "datasets", "dpo", "kto", "sft"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
LIKED_RATING, DISLIKED_RATING = 4, 2  # from, and up to

Line = dict[str, Any]


def is_liked(record: JudgedInteraction) -> bool | None:
    """Say whether the answer was found good, or bad; None: neither. Stars say more than a thumb."""
    if record.rating is None:
        return record.liked
    if LIKED_RATING > record.rating > DISLIKED_RATING:
        return None
    return record.rating >= LIKED_RATING


def import_lines(record: FrozenInteraction) -> list[Line]:
    """Return the line of our import format. It has no word for the swarm's corrections, so they stay out."""
    left_out = {"written_by", "looked_up", "review", "schema_version"}
    if record.written_by == "swarm":
        left_out.add("correction")
    line = record.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    return [{"schema_version": 1, **line}]


def table_lines(record: FrozenInteraction) -> list[Line]:
    """Return the row of a table: all fields, those that are not known as null."""
    return [record.model_dump(mode="python", exclude={"schema_version"})]


def sft_lines(record: FrozenInteraction) -> list[Line]:
    """Return a prompt with its completion, conversational: the correction, or an answer that was liked."""
    target = record.correction
    if target is None and is_liked(record) and not record.looked_up:
        target = record.response
    return [_prompt(record) | {"completion": _answer(target)}] if target and _may_teach(record) else []


def dpo_lines(record: FrozenInteraction) -> list[Line]:
    """Return prompt, chosen, rejected, conversational: a correction over the answer, an answer over those it beat."""
    if not _may_teach(record):
        return []
    pairs = [(record.correction, record.response), *((record.response, other) for other in record.better_than)]
    return [
        _prompt(record) | {"chosen": _answer(chosen), "rejected": _answer(rejected)}
        for chosen, rejected in pairs
        if chosen and rejected and chosen != rejected
    ]


def kto_lines(record: FrozenInteraction) -> list[Line]:
    """Return prompt, completion, label, conversational: the answer, and whether it was found good."""
    label = is_liked(record)
    if label is None or not record.response or not _may_teach(record):
        return []
    return [_prompt(record) | {"completion": _answer(record.response), "label": label}]


LINES_OF: dict[ExportFormat, Callable[[FrozenInteraction], list[Line]]] = {
    "jsonl": import_lines,
    "parquet": table_lines,
    "datasets": table_lines,
    "dpo": dpo_lines,
    "kto": kto_lines,
    "sft": sft_lines,
}


def _may_teach(record: FrozenInteraction) -> bool:
    return record.review != "rejected"


def _prompt(record: FrozenInteraction) -> Line:
    return {"prompt": [message.model_dump() for message in record.messages]}


def _answer(text: str) -> list[Line]:
    return [{"role": "assistant", "content": text}]
