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
    """Return `messages` with `text` at the end of the user's last one, never in a system prompt, whatever is last."""
    at = max((number for number, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if at is None:
        return [*messages, {"role": "user", "content": text}]
    last = messages[at]
    content = last.get("content")
    if isinstance(content, list):
        longer: Any = [*content, {"type": "text", "text": text}]
    else:
        longer = f"{content or ''}\n\n{text}"
    return [*messages[:at], {**last, "content": longer}, *messages[at + 1 :]]


def draft_tokens(answer_tokens: int) -> int:
    """Return how many tokens an answer may count as when it is read again, by the estimate."""
    return answer_tokens * ESTIMATE_FACTOR
