"""Open WebUI's export of feedback: a thumb on one message of a chat, with the chat as it was then.

The form is that of `exportAllFeedbacks` and of `feedbackHandler` in its ResponseMessage.svelte (2024 to 2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everswarm.errors import BadRequestError
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.feedback.files.conversations import Answer, Defaults, Turn, interaction_of, moment_of
from everswarm.server.feedback.reading import identifier_of, printable

MOST_STARS = 10  # of `details.rating`; ours are half as many
OTHERS_KEPT = 20  # answers that lost, of one vote
_THUMBS = {"1": True, "-1": False}
_ASIDES = re.compile(r"<details\s+type=\"(?:reasoning|tool_calls|code_interpreter)\".*?</details>\s*", re.DOTALL)
_TEXT_ROLES = ("system", "user", "assistant")

Node = Mapping[str, Any]


def read_feedback(item: Mapping[str, Any], defaults: Defaults) -> list[JudgedInteraction]:
    """Return the one interaction that a record of feedback judges.

    A thumb becomes `liked`, 1 to 10 stars become 1 to 5, an answer that its user rewrote becomes a correction; in the
    arena, and where several models answered, the other answers lost against one that was liked.

    Raises:
        BadRequestError: the chat is not in it, or the judgement is none.
    """
    if "chat" in item and "snapshot" not in item:
        raise BadRequestError(
            "is a chat without feedback; in Open WebUI export it under Admin Panel, Evaluations, Feedbacks"
        )
    data, meta = _object(item, "data"), _object(item, "meta")
    nodes, rated = _chat_of(item, meta)
    path = _path_to(rated, nodes)
    original, shown = _text(rated, "originalContent"), _text(rated, "content")
    liked = _liked(data)
    fields = {
        "id": identifier_of(str(item["id"])) if isinstance(item.get("id"), str) and item["id"] else None,
        "device_id": identifier_of(printable(str(item["user_id"]))) if item.get("user_id") else defaults.device_id,
        "timestamp": moment_of(item, ("created_at", "updated_at"), otherwise=defaults.timestamp),
        "liked": liked,
        "rating": _rating(data),
        "comment": "; ".join(word for name in ("reason", "comment") if (word := _text(data, name))) or None,
        "correction": shown if original and shown and original != shown else None,
        "better_than": _losers(rated, nodes, data, meta) if liked else [],
    }
    known = {name: value for name, value in fields.items() if name != "id" or value}
    answer = Answer(path, original or shown)
    return [interaction_of(answer, defaults, model=data.get("model_id") or rated.get("model"), **known)]


def _chat_of(item: Mapping[str, Any], meta: Node) -> tuple[dict[str, Node], Node]:
    """Return the messages of the chat by id, and the one that was rated."""
    chat = _object(_object(item, "snapshot"), "chat")
    chat = _object(chat, "chat") or chat
    held = _object(chat, "history").get("messages") or chat.get("messages")
    listed = list(held.values()) if isinstance(held, Mapping) else held if isinstance(held, list) else []
    messages = [message for message in listed if isinstance(message, Mapping)]
    if not messages:
        raise BadRequestError(
            "snapshot.chat: holds no messages; export the feedback with its chats, not what is shared to the community"
        )
    nodes = {str(message.get("id", index)): message for index, message in enumerate(messages)}
    rated = nodes.get(str(meta.get("message_id")))
    if rated is None or rated.get("role") != "assistant":
        raise BadRequestError("meta.message_id: names no answer in snapshot.chat")
    if not _text(rated, "content"):
        raise BadRequestError("the answer that was rated is empty")
    return nodes, rated


def _path_to(rated: Node, nodes: Mapping[str, Node]) -> list[Turn]:
    """Return the turns before `rated`, the first one first; without parents those before it in the list."""
    if "parentId" not in rated:
        listed = list(nodes.values())
        before = listed[: next(index for index, node in enumerate(listed) if node is rated)]
    else:
        before, seen, node = [], set(), nodes.get(str(rated["parentId"]))
        while node is not None and id(node) not in seen:
            seen.add(id(node))
            before.insert(0, node)
            node = nodes.get(str(node.get("parentId")))
    turns = [Turn(role, _text(node, "content")) for node in before if (role := node.get("role")) in _TEXT_ROLES]
    return [turn for turn in turns if turn.text]


def _losers(rated: Node, nodes: Mapping[str, Node], data: Node, meta: Node) -> list[str]:
    """Return the other answers to the same question, where they were compared; none that was liked as well."""
    if not (meta.get("arena") or data.get("sibling_model_ids")) or not rated.get("parentId"):
        return []
    others = [
        _text(node, "content")
        for node in nodes.values()
        if node is not rated
        and node.get("role") == "assistant"
        and node.get("parentId") == rated["parentId"]
        and not _THUMBS.get(str(_object(node, "annotation").get("rating")))
    ]
    return [text for text in dict.fromkeys(others) if text and text != _text(rated, "content")][:OTHERS_KEPT]


def _liked(data: Node) -> bool | None:
    thumb = data.get("rating")
    if thumb is None:
        return None
    if str(thumb) not in _THUMBS:
        raise BadRequestError(f"data.rating: should be 1 or -1, not {str(thumb)[:40]!r}")
    return _THUMBS[str(thumb)]


def _rating(data: Node) -> int | None:
    stars = _object(data, "details").get("rating")
    if stars is None:
        return None
    if not isinstance(stars, int) or isinstance(stars, bool) or not 1 <= stars <= MOST_STARS:
        raise BadRequestError(f"data.details.rating: should be 1 to {MOST_STARS}, not {str(stars)[:40]!r}")
    return (stars + 1) // 2


def _object(item: Mapping[str, Any], name: str) -> Node:
    value = item.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    return printable(_ASIDES.sub("", value).strip()) if isinstance(value, str) else ""
