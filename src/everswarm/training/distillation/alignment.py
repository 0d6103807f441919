"""From texts and soft targets in bytes to what the student's trainer needs in its own token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError
from everswarm.schemas.dataset import Example
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.distillation.target_shards import END_OF_TURN, ScoredText
from everswarm.training.distillation.token_bytes import byte_spans, ids_by_bytes, token_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lesson:
    """One example in the student's tokens: prompt, then answer with its end of turn, and the teacher's view of it."""

    ids: list[int]
    prompt_tokens: int
    top_ids: NDArray[np.int64]  # (answer tokens, k)
    top_logprobs: NDArray[np.float32]  # (answer tokens, k); -inf pads, and fills where the teacher is silent
    tail_logprob: NDArray[np.float32]  # (answer tokens,)

    @property
    def answer_tokens(self) -> int:
        """Return how many tokens are learnt from."""
        return len(self.ids) - self.prompt_tokens


class LessonMaker:
    """Puts examples into the student's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pieces = token_bytes(tokenizer)
        self.end_of_turn = end_of_turn_id(tokenizer)
        self.id_of = ids_by_bytes(self.pieces, tokenizer.all_special_ids) | {END_OF_TURN: self.end_of_turn}

    def make(self, example: Example, scored: ScoredText) -> Lesson | None:
        """Return the example as a lesson, or None if its prompt leaves no room for an answer.

        Raises:
            StageFailedError: `scored` is of another text.
        """
        target = example.target.encode()
        if not target.startswith(scored.text):
            raise StageFailedError(
                f"The soft targets of example '{example.id}' are of another text than its target; "
                "they belong to another dataset. Label this dataset again."
            )
        prompt = prompt_ids(self.tokenizer, example.messages)
        answer = answer_ids(self.tokenizer, example.target)
        spans = [*byte_spans(answer, self.pieces, target), (len(target), len(target))]
        ids = [*prompt, *answer, self.end_of_turn][: self.max_tokens]
        kept = len(ids) - len(prompt)
        if kept <= 0:
            return None
        top_ids, top_logprobs, tail = align(scored, spans[:kept], self.id_of)
        return Lesson(ids, len(prompt), top_ids, top_logprobs, tail)


def align(
    scored: ScoredText, spans: Sequence[tuple[int, int]], id_of: Mapping[bytes, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return ids and log-probabilities (tokens, k) and the tail (tokens,) for the student's tokens at `spans`.

    The teacher speaks where one of its tokens covers exactly the bytes of one of the student's; elsewhere a row is
    all -inf. A candidate that the student has no token for (or a second one with the same bytes) goes to the tail.
    """
    import numpy as np

    k = scored.top_logprob.shape[1]
    top_ids = np.zeros((len(spans), k), dtype=np.int64)
    top_logprobs = np.full((len(spans), k), -np.inf, dtype=np.float32)
    tail = np.full(len(spans), -np.inf, dtype=np.float32)
    teacher_token = {span: index for index, span in enumerate(zip(scored.start, scored.end, strict=True))}
    for row, span in enumerate(spans):
        token = teacher_token.get(span)
        if token is None:
            continue
        used: dict[int, float] = {}
        outside = [float(scored.tail_logprob[token])]
        for candidate, logprob in zip(scored.top_bytes[token], scored.top_logprob[token].tolist(), strict=True):
            number = id_of.get(candidate)
            if number is None or number in used:
                outside.append(logprob)
            else:
                used[number] = logprob
        if used:
            top_ids[row, : len(used)] = list(used)
            top_logprobs[row, : len(used)] = list(used.values())
            tail[row] = np.logaddexp.reduce(np.asarray(outside))
    return top_ids, top_logprobs, tail
