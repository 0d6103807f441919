"""Chunks of a stream ↔ the whole completion. Pure; neither direction changes what it is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from everswarm.llm.protocol import Chunk

PIECES = 16  # of one text, at most
PIECE_CHARACTERS = 48  # and at least this long
_NAMES = frozenset({"id", "type", "name", "role"})  # said whole; some upstreams repeat them
_FRAME = ("id", "created", "model", "system_fingerprint", "service_tier")  # on every chunk


class _Pieces(list[str]):
    """A text that is still being said; joined once, at the end."""


class _Calls(dict[int, dict[str, Any]]):
    """Tool calls by their index."""


def assemble(chunks: Sequence[Chunk]) -> dict[str, Any]:
    """Return the `chat.completion` that `chunks`, in their order, are the stream of.

    Texts are joined, tool calls merged by index, lists of logprobs continued; of other values the last one counts.
    A stream that was cut gives a completion whose `finish_reason` is None.
    """
    said: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        if None in chunk.values():
            said.update({name: value for name, value in chunk.items() if value is not None or name not in said})
        else:
            said.update(chunk)
        for piece in chunk.get("choices") or ():
            _take_choice(choices, piece)
    whole: dict[str, Any] = {"id": "", "object": "chat.completion", "created": 0, "model": ""}
    for name in ("id", "created", "model"):  # the first counts: some upstreams begin with a chunk that has none
        whole[name] = next((chunk[name] for chunk in chunks if chunk.get(name)), whole[name])
    whole["choices"] = [_joined(choices[index]) for index in sorted(choices)]
    if said.get("usage", ...) is None:  # said on every chunk but the last, and there was no last
        del said["usage"]
    return {**said, **whole}


def as_chunks(completion: Mapping[str, Any], *, include_usage: bool = True) -> list[Chunk]:
    """Return a stream of which `completion` is the whole: `assemble` gives it back.

    For each choice: its role, its texts in at most `PIECES` pieces each, its tool calls, its end. Then the usage, in
    a chunk without choices, if it is asked for and known.
    """
    frame: dict[str, Any] = {"object": "chat.completion.chunk"}
    frame |= {name: completion[name] for name in _FRAME if name in completion}
    chunks: list[Chunk] = [
        {**frame, "choices": [piece]} for choice in completion.get("choices") or () for piece in _choice_pieces(choice)
    ]
    usage = completion.get("usage")
    if not chunks or (include_usage and usage is not None):
        chunks.append({**frame, "choices": []})
    if include_usage and usage is not None:
        chunks[-1]["usage"] = usage
    known = {*_FRAME, "object", "choices", "usage"}
    chunks[-1].update({name: value for name, value in completion.items() if name not in known})
    return chunks


def is_whole(completion: Mapping[str, Any]) -> bool:
    """Return whether every choice came to its end; one that was cut says no `finish_reason`."""
    choices = completion.get("choices")
    return bool(choices) and all(choice.get("finish_reason") for choice in choices or ())


def _take_choice(choices: dict[int, dict[str, Any]], piece: Mapping[str, Any]) -> None:
    index = piece.get("index") or 0
    choice = choices.get(index)
    if choice is None:
        message = {"role": "assistant", "content": None}
        choice = choices[index] = {"index": index, "message": message, "finish_reason": None}
    for name, value in piece.items():
        if name == "delta":
            _merge(choice["message"], value or {})
        elif name == "logprobs" and value is not None:
            _merge_value(choice, name, value)
        elif name != "index" and (value is not None or name not in choice):
            choice[name] = value


def _merge(into: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        old = into.get(name)
        if isinstance(old, _Pieces) and isinstance(value, str):
            old.append(value)
        elif value is None:
            into.setdefault(name, None)
        elif name in _NAMES:
            into[name] = old or value
        else:
            _merge_value(into, name, value)


def _merge_value(into: dict[str, Any], name: str, value: Any) -> None:
    old = into.get(name)
    if isinstance(value, str):
        into[name] = _Pieces([value])
    elif isinstance(value, dict):
        if not isinstance(old, dict):
            old = into[name] = {}
        _merge(old, value)
    elif isinstance(value, list):
        _merge_list(into, name, value)
    else:
        into[name] = value


def _merge_list(into: dict[str, Any], name: str, items: list[Any]) -> None:
    old = into.get(name)
    if name != "tool_calls":
        into[name] = [*old, *items] if isinstance(old, list) else list(items)
        return
    calls = old if isinstance(old, _Calls) else _Calls()
    into[name] = calls
    for item in items:
        index = item.get("index")
        if index is None:  # some upstreams leave it out: an id begins the next call
            index = len(calls) if item.get("id") or not calls else max(calls)
        _merge(calls.setdefault(index, {}), {key: value for key, value in item.items() if key != "index"})


def _joined(value: Any) -> Any:
    if isinstance(value, _Pieces):
        return "".join(value)
    if isinstance(value, _Calls):
        return [_joined(value[index]) for index in sorted(value)]
    if isinstance(value, dict):
        return {name: _joined(item) for name, item in value.items()}
    return value


def _choice_pieces(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the `choices[0]` of each chunk of one choice."""
    index = choice.get("index", 0)
    deltas = list(_deltas(choice.get("message") or {}))
    for position, delta in enumerate(deltas):
        piece = {"index": index, "delta": delta, "finish_reason": None}
        if "logprobs" in choice and position == min(1, len(deltas) - 1):  # beside the first text, if there is one
            piece["logprobs"] = choice["logprobs"]
        yield piece
    end = {name: value for name, value in choice.items() if name not in {"index", "message", "logprobs"}}
    yield {"finish_reason": None, **end, "index": index, "delta": {}}


def _deltas(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    texts = {name: text for name, text in message.items() if isinstance(text, str) and name not in _NAMES}
    calls = message.get("tool_calls")
    opening = {name: "" if name in texts else value for name, value in message.items()}
    if calls:
        del opening["tool_calls"]
    yield opening
    for name in sorted(texts, key=lambda name: name == "content"):  # what was thought comes before what is said
        for piece in _cut(texts[name]):
            yield {name: piece}
    for position, call in enumerate(calls or ()):
        yield {"tool_calls": [{"index": position, **call}]}


def _cut(text: str) -> Iterator[str]:
    size = max(PIECE_CHARACTERS, -(-len(text) // PIECES))
    return (text[start : start + size] for start in range(0, len(text), size))
