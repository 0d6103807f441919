"""How an example is put to a teacher, and by which token an answer ends. Knows nothing of models, only of tokenizers.

The names of the templates are part of a cache's identity: a new wording takes the next number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from everswarm.errors import StageFailedError
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.settings import TeacherSettings
from everswarm.training import chat_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["chat", "plain"]

_FORMS: dict[Template, str] = {"chat": "chat-1", "plain": "plain-1"}
_HINDSIGHT, _AS_ASKED = "ask-again-1", "as-asked-1"


def template_name(asked: TeacherSettings) -> str:
    """Return the name of the prompt that this teacher reads, such as `chat-1/ask-again-1` (with hindsight)."""
    return f"{_FORMS[asked.template]}/{_HINDSIGHT if asked.hindsight else _AS_ASKED}"


def teacher_messages(example: Example, hindsight: bool) -> list[Message]:
    """Return what the teacher reads before it scores a text.

    With hindsight it has read the person's own answer as its first try and is asked the same once more, so that its
    probabilities are those of one who knows what was meant.
    """
    if not hindsight:
        return example.messages
    return [*example.messages, Message(role="assistant", content=example.target), example.messages[-1]]


def plain_text(messages: Sequence[Message]) -> str:
    r"""Return a conversation for a base model: `User:\nHi\n\nAssistant:\nHello\n\nUser:\nBye\n\nAssistant:\n`.

    An answer begins on a line of its own: a tokenizer then cuts it as it does at the start of any text.
    """
    turns = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
    return "".join([*turns, "Assistant:\n"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template: Template) -> list[int]:
    """Return the tokens of `messages` up to where the answer begins.

    Raises:
        StageFailedError: `template` is `chat`, and the tokenizer has none that can be used.
    """
    if template == "chat":
        return chat_tokens.prompt_ids(tokenizer, messages)
    begin = tokenizer("", add_special_tokens=True)["input_ids"][:1]  # Gemma without its <bos> is lost
    text = chat_tokens.answer_ids(tokenizer, plain_text(messages))
    return [*begin, *text] if begin == [tokenizer.bos_token_id] else text


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token by which the chat template ends an answer, which is not always `eos_token`.

    Raises:
        StageFailedError: the tokenizer has no chat template, or no token that ends anything.
    """
    after = chat_tokens.after_answer(chat_tokens.render_of(tokenizer))
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.added_tokens_decoder:
        return int(ids[0])
    if tokenizer.eos_token_id is None:
        raise StageFailedError(
            "The tokenizer has no token that ends a turn: neither its chat template nor eos_token names one. Use the "
            "tokenizer that the model's makers publish."
        )
    return int(tokenizer.eos_token_id)
