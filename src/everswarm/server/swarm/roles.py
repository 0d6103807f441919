"""What a role adds to a request: its system prompt, and its sampling where the request has none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everswarm.llm.protocol import Payload
from everswarm.settings import RoleSettings

_SYSTEM = ("system", "developer")


def with_role(payload: Payload, role: RoleSettings | None) -> Payload:
    """Return `payload` as `role` is asked; the request's own system prompt comes after the role's."""
    if role is None:
        return payload
    added: dict[str, Any] = {}
    if role.temperature is not None and payload.get("temperature") is None:
        added["temperature"] = role.temperature
    if role.top_p is not None and payload.get("top_p") is None:
        added["top_p"] = role.top_p
    if role.system_prompt:
        added["messages"] = with_system(payload["messages"], role.system_prompt)
    return {**payload, **added} if added else payload


def with_system(messages: list[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Return `messages` with `text` before their system prompt, in one message: many templates allow only one."""
    first = messages[0]
    if first.get("role") not in _SYSTEM:
        return [{"role": "system", "content": text}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        joined: Any = [{"type": "text", "text": text}, *content]
    else:
        joined = f"{text}\n\n{content}" if content else text
    return [{**first, "content": joined}, *messages[1:]]
