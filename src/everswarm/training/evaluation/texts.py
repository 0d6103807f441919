"""Examples as token ids: the same ids for every subject and every engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from everswarm.schemas.interaction import Message
from everswarm.training.chat_tokens import answer_ids, prompt_ids

MAX_TEXT_TOKENS = 2048  # prompt and answer; at most half of it is answer


class QuestionAnswer(Protocol):
    """What can be scored: a dataset's `Example` or a `GeneralExample`."""

    @property
    def id(self) -> str:
        """Its name in the suite."""

    @property
    def messages(self) -> list[Message]:
        """The conversation up to the question."""

    @property
    def target(self) -> str:
        """The reference answer."""


class TokenizedText(NamedTuple):
    """One example, ready to be scored. The end-of-turn token is not part of `answer_ids`."""

    id: str
    prompt_ids: list[int]
    answer_ids: list[int]
    answer_bytes: int  # of the answer in UTF-8


class TextScore(NamedTuple):
    """What one model thinks of one answer."""

    logprob: float  # nats, summed over the answer's tokens
    tokens: int
    answer_bytes: int


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer that lies beside the weights in `folder`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def tokenize(example: QuestionAnswer, tokenizer: Any, *, max_tokens: int = MAX_TEXT_TOKENS) -> TokenizedText:
    """Return `example` as ids by the chat template.

    Over `max_tokens` the answer loses its end and the prompt its start.
    """
    prompt = prompt_ids(tokenizer, example.messages)
    answer = answer_ids(tokenizer, example.target)
    answer_bytes = len(example.target.encode())
    if len(prompt) + len(answer) > max_tokens:
        answer = answer[: max_tokens // 2]
        prompt = prompt[len(answer) - max_tokens :]
        answer_bytes = len(tokenizer.decode(answer).encode())
    return TokenizedText(example.id, prompt, answer, answer_bytes)


def shared_prefix(texts: Sequence[TokenizedText]) -> list[int]:
    """Return the ids that all prompts start with, such as the system message; each keeps at least one of its own."""
    shared: list[int] = []
    for column in zip(*(text.prompt_ids[:-1] for text in texts), strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return shared


def decode(ids: Sequence[int], tokenizer: Any) -> str:
    """Return a generated answer as text, without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
