"""How an example is put to the student, and how to the teacher. Knows nothing of models, only of their tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everswarm.errors import BadRequestError
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.schemas.targets import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HINDSIGHT_TEMPLATE = "ask-again-1"
PLAIN_TEMPLATE = "plain-1"


def teacher_messages(example: Example, teacher: Teacher) -> list[Message]:
    """Return what the teacher reads before it scores the target.

    With hindsight it has read the person's own answer as its first try and is asked the same once more, so that its
    probabilities are those of one who knows what was meant.

    Raises:
        BadRequestError: the teacher's template is not one of ours.
    """
    template = HINDSIGHT_TEMPLATE if teacher.hindsight else PLAIN_TEMPLATE
    if teacher.template != template:
        raise BadRequestError(
            f"A teacher {'with' if teacher.hindsight else 'without'} hindsight has the template '{template}', "
            f"not '{teacher.template}'."
        )
    if not teacher.hindsight:
        return example.messages
    return [*example.messages, Message(role="assistant", content=example.target), example.messages[-1]]


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token by which the chat template ends an answer, which is not always `eos_token`."""
    mark = "everswarm"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.all_special_ids:
        return int(ids[0])
    return int(tokenizer.eos_token_id)
