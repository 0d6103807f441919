"""What a model is shown that writes one answer from several texts: the question, then the texts as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everswarm.server.swarm.run import Run
from everswarm.server.swarm.tools.fence import explain, fence, new_nonce

WRITER_PROMPT_TOKENS = 400  # of the task, the explanation and the fences
CHARACTERS_A_TOKEN = 6  # of an answer, rather too many than too few
ESTIMATE_FACTOR = 3  # by which the estimate of a text's tokens may be above what a model counted when it wrote it


def written_from(run: Run, task: str, texts: Sequence[tuple[str, str]]) -> list[Mapping[str, Any]]:
    """Return the conversation with `task` and the (name, text) pairs behind its last message."""
    nonce = new_nonce()
    limit = run.answer_tokens * CHARACTERS_A_TOKEN
    shown = "\n\n".join(
        fence(text[:limit], source=f"{name} {number}", nonce=nonce) for number, (name, text) in enumerate(texts, 1)
    )
    return with_appendix(run.messages, f"{task} {explain(nonce)}\n\n{shown}")


def with_appendix(messages: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """Return `messages` with `text` at the end of the last one, the user's."""
    *before, last = messages
    content = last.get("content")
    if isinstance(content, list):
        return [*before, {**last, "content": [*content, {"type": "text", "text": text}]}]
    return [*before, {**last, "content": f"{content or ''}\n\n{text}"}]


def draft_tokens(answer_tokens: int) -> int:
    """Return how many tokens an answer may count as when it is read again, by the estimate."""
    return answer_tokens * ESTIMATE_FACTOR
