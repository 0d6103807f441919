"""A conversation as token ids: the same for the teacher, the student and the examiner. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from everswarm.schemas.interaction import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of `messages` in the model's chat template, up to where the answer begins."""
    turns = [message.model_dump() for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of an answer, without the end of turn. A person's '<|im_end|>' is text, not a token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
