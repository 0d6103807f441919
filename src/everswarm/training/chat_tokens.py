"""A conversation as token ids: the same for the teacher, the student and the examiner. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError
from everswarm.schemas.interaction import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, str]]
Render = Callable[[Turns, bool], str]  # turns, and whether an answer is to begin after them

_ANSWER = "everswarm"  # stands for any answer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of `messages` in the model's chat template, up to where the answer begins.

    Raises:
        StageFailedError: the tokenizer has no chat template, or one that `chat_text` refuses.
    """
    text = chat_text(render_of(tokenizer), messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of an answer, without the end of turn. A person's '<|im_end|>' is text, not a token."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def render_of(tokenizer: PreTrainedTokenizerBase) -> Render:
    """Return the tokenizer's chat template as a function.

    Raises:
        StageFailedError: it has none.
    """
    if not tokenizer.chat_template:
        raise no_chat_template("This tokenizer")
    return lambda turns, begin_answer: str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin_answer)
    )


def chat_text(render: Render, messages: Sequence[Message]) -> str:
    """Return `messages` as `render` writes them, up to where the answer begins.

    Raises:
        StageFailedError: the template refuses the conversation, or does not say where an answer begins.
    """
    from jinja2 import TemplateError

    turns = [message.model_dump() for message in messages]
    try:
        text = render(turns, True)
        # Mistral's template has no generation prompt and needs none: its answers follow the question at once
        if render(turns, False) == text and not _answer_follows(text, render, turns):
            raise StageFailedError(
                "The chat template has no generation mark: add_generation_prompt changes nothing, so nobody knows "
                "where an answer begins. Use the template that the model's makers publish, with its "
                "'{% if add_generation_prompt %}'."
            )
    except TemplateError as error:
        raise StageFailedError(
            f"The chat template refuses this conversation: {error}. Leave such conversations out, or choose template = "
            '"plain" for a teacher.'
        ) from error
    return text


def after_answer(render: Render) -> str:
    """Return what the template writes behind an answer, such as `<|im_end|>`; empty where it writes nothing."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _ANSWER}]
    return render(turns, False).rpartition(_ANSWER)[2].lstrip()


def no_chat_template(what: str) -> StageFailedError:
    """Return the error of a model that cannot hold a conversation, as base models cannot."""
    return StageFailedError(
        f'{what} has no chat template, as with a base model. For a teacher choose template = "plain"; a student '
        "needs a chat model, such as one whose name ends in Instruct."
    )


def _answer_follows(text: str, render: Render, turns: Turns) -> bool:
    whole = render([*turns, {"role": "assistant", "content": _ANSWER}], False)
    return whole.startswith(text) and whole[len(text) :].lstrip().startswith(_ANSWER)
