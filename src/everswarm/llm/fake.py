"""A fake: a chat model that says what it was told to say, for tests and examples. No model is behind it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from everswarm.llm.protocol import Chunk, Payload


class FakeChatModel:
    """Answers from a script, over and over, or from a function of the payload. Counts a word as a token."""

    def __init__(self, answers: Sequence[str] | Callable[[Payload], str], *, model: str = "fake") -> None:
        self._answers = answers
        self.model = model
        self.calls: list[dict[str, Any]] = []

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        """Return the next answer."""
        text = self._next(payload)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": _usage(payload, text)}

    async def stream(
        self, payload: Payload, *, heard: dict[str, str] | None = None
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield the next answer word by word."""
        text = self._next(payload)
        frame = self._frame("chat.completion.chunk")
        yield [{**frame, "choices": [_piece({"role": "assistant", "content": ""})]}]
        for position, word in enumerate(text.split(" ")):
            yield [{**frame, "choices": [_piece({"content": word if position == 0 else f" {word}"})]}]
        yield [{**frame, "choices": [_piece({}, finish_reason="stop")]}]
        if (payload.get("stream_options") or {}).get("include_usage"):
            yield [{**frame, "choices": [], "usage": _usage(payload, text)}]

    async def close(self) -> None:
        """Do nothing."""

    def _next(self, payload: Payload) -> str:
        self.calls.append(dict(payload))
        if callable(self._answers):
            return self._answers(payload)
        return self._answers[(len(self.calls) - 1) % len(self._answers)]

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": f"fake-{len(self.calls)}", "object": kind, "created": int(time.time()), "model": self.model}


def _piece(delta: dict[str, Any], *, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


def _usage(payload: Payload, text: str) -> dict[str, int]:
    prompt = sum(len(str(message.get("content") or "").split()) for message in payload["messages"])
    answer = len(text.split())
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
