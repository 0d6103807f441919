"""A conversation as a file: for programs, for fine-tuning tools, for people."""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

from everswarm.schemas.thread import ExportFormat, ThreadDetail

SPEAKERS = {"user": "You", "assistant": "everswarm"}
NAME_CHARACTERS = 60  # of a title, in the name of a file

_KINDS: dict[ExportFormat, tuple[str, str]] = {  # media type, ending of the name
    "json": ("application/json", "json"),
    "jsonl": ("application/jsonl", "jsonl"),
    "markdown": ("text/markdown; charset=utf-8", "md"),
}


class Export(NamedTuple):
    """A file for download."""

    content: bytes
    media_type: str
    filename: str  # ASCII, without quotes


def export_thread(thread: ThreadDetail, form: ExportFormat) -> Export:
    """Return `thread` as a file.

    `json` is one object with id, title and OpenAI's messages; `jsonl` one line of messages, as fine-tuning tools take
    them (no line, where nothing was said); `markdown` is to be read.
    """
    media_type, ending = _KINDS[form]
    messages = [{"role": turn.role, "content": turn.content} for turn in thread.messages]
    if form == "markdown":
        content = _markdown(thread).encode()
    elif form == "json":
        told = {"id": thread.id, "title": thread.title, "messages": messages}
        content = orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    else:
        content = orjson.dumps({"messages": messages}, option=orjson.OPT_APPEND_NEWLINE) if messages else b""
    return Export(content, media_type, f"{_file_name(thread)}.{ending}")


def _markdown(thread: ThreadDetail) -> str:
    parts = [f"# {thread.title or 'Conversation'}", f"{thread.created_at:%Y-%m-%d}"]
    parts += [f"## {SPEAKERS[turn.role]}\n\n{turn.content}" for turn in thread.messages]
    return "\n\n".join(parts) + "\n"


def _file_name(thread: ThreadDetail) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", (thread.title or "").lower())[:NAME_CHARACTERS].strip("-")
    return words or f"thread-{thread.id}"
