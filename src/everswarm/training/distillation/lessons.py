"""Examples and what teachers said of them, put into the student's tokens and weighed by the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import TextSource
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation.alignment import Aligned, View, align
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.token_bytes import ids_by_bytes, space_in_front, token_bytes, token_ends

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Lesson:
    """One text in the student's tokens: prompt, then answer, with all that its `n` answer tokens are compared with.

    The arrays are those of `head.AnswerTargets`.
    """

    ids: list[int]
    prompt_tokens: int
    source: TextSource
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]
    logprob: NDArray[np.float32]
    text_weight: NDArray[np.float32]
    soft_share: NDArray[np.float32]
    forward_weight: NDArray[np.float32]
    reverse_weight: NDArray[np.float32]
    chunk: NDArray[np.int64]
    chunk_logprob: NDArray[np.float32]
    chunk_weight: NDArray[np.float32]

    @property
    def answer_tokens(self) -> int:
        """Return how many tokens are learnt from."""
        return len(self.ids) - self.prompt_tokens


class LessonMaker:
    """Puts texts into the student's tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, *, vocabulary: int) -> None:
        """Read the tokenizer.

        Raises:
            StageFailedError: it has more tokens than the student's head has rows (`vocabulary`).
        """
        if len(tokenizer) > vocabulary:
            raise StageFailedError(
                f"The student's tokenizer has {len(tokenizer)} tokens, its weights only {vocabulary}: they do not "
                "belong together. Fetch the student again, tokenizer and weights from one place."
            )
        self.tokenizer = tokenizer
        self.recipe = recipe
        self.pieces = token_bytes(tokenizer)
        self.end_of_turn = end_of_turn_id(tokenizer)
        self.id_of = ids_by_bytes(self.pieces, tokenizer.all_special_ids) | {END_OF_TURN: self.end_of_turn}
        self._known: tuple[Sequence[bytes], NDArray[np.int64], NDArray[np.int64]] | None = None

    def lessons(
        self, example: Example, scored: Sequence[ScoredText], weight_of: Sequence[float] | None = None
    ) -> list[Lesson]:
        """Return what one example gives to learn: its target, and the texts that teachers or the student wrote.

        `scored` is all that teachers said of it, `weight_of` the weight of each one's opinion. A text that the prompt
        leaves no room for is left out.

        Raises:
            StageFailedError: the target is empty, or a teacher scored another text than it.
        """
        if not example.target:
            raise StageFailedError(
                f"Example '{example.id}' has an empty answer, from which nothing can be learnt. "
                "Curate the dataset again."
            )
        weights = weight_of or [1.0] * len(scored)
        target = example.target.encode()
        views: list[tuple[tuple[TextSource, bytes, bool], ScoredText, float]] = []
        for text, weight in zip(scored, weights, strict=True):
            if text.source != "target":
                views.append(((text.source, text.text, text.ended), text, weight))
                continue
            if not target.startswith(text.text):
                raise StageFailedError(
                    f"The soft targets of example '{example.id}' are of another text than its target; "
                    "they belong to another dataset. Label this dataset again."
                )
            views.append((("target", target, True), text, weight))
        views.sort(key=lambda view: view[0])
        texts = {
            key: [(text, weight) for _, text, weight in group] for key, group in groupby(views, lambda view: view[0])
        }
        texts.setdefault(("target", target, True), [])
        prompt = prompt_ids(self.tokenizer, example.messages)
        made = [
            self._lesson(prompt, source, text, ended=ended, views=seen)
            for (source, text, ended), seen in sorted(texts.items(), key=lambda item: item[0])
        ]
        return [lesson for lesson in made if lesson is not None]

    def _lesson(
        self,
        prompt: list[int],
        source: TextSource,
        text: bytes,
        *,
        ended: bool,
        views: Sequence[tuple[ScoredText, float]],
    ) -> Lesson | None:
        answer = answer_ids(self.tokenizer, text.decode())
        end = token_ends(answer, self.pieces, text)
        ids = [*prompt, *answer, *([self.end_of_turn] if ended else [])][: self.recipe.max_tokens]
        kept = len(ids) - len(prompt)
        if kept <= 0:
            return None
        seen = []
        for scored, weight in views:
            if scored.tokens:
                inside, after_space = self._student_ids(scored.vocabulary)
                first = after_space if space_in_front(answer, self.pieces, text) else inside
                seen.append(View(scored, inside, first, weight))
        aligned = align(seen, end[:kept], ended=kept > len(answer)) if seen else _silence(kept)
        return self._weighed(ids, len(prompt), source, aligned)

    def _weighed(self, ids: list[int], prompt_tokens: int, source: TextSource, aligned: Aligned) -> Lesson:
        import numpy as np

        recipe = self.recipe
        soft = recipe.soft_target_weight
        speaks = aligned.top_logprobs.max(axis=1, initial=-np.inf) > -np.inf
        exact = aligned.exact & speaks
        position = np.where(exact, soft, 0.0) + np.where(aligned.first & speaks, soft * recipe.first_token_weight, 0.0)
        position = position.astype(np.float32)
        nothing = np.zeros_like(position)
        own_words = source == "rollout"  # what the student wrote itself is no text to learn by heart
        return Lesson(
            ids=ids,
            prompt_tokens=prompt_tokens,
            source=source,
            top_ids=aligned.top_ids,
            top_logprobs=aligned.top_logprobs,
            tail_logprob=aligned.tail_logprob,
            logprob=aligned.logprob,
            text_weight=nothing if own_words else np.ones_like(position),
            soft_share=np.where(exact | (aligned.chunk >= 0), soft, 0.0).astype(np.float32),
            forward_weight=nothing if own_words else position,
            reverse_weight=position if own_words else nothing,
            chunk=aligned.chunk,
            chunk_logprob=aligned.chunk_logprob,
            chunk_weight=np.full(len(aligned.chunk_logprob), soft * recipe.chunk_weight, dtype=np.float32),
        )

    def _student_ids(self, vocabulary: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the student's token of each entry, and of each with a space before it (entries,); -1 for none.

        Texts of one shard share a vocabulary.
        """
        import numpy as np

        if self._known is None or self._known[0] is not vocabulary:
            inside = [self.id_of.get(piece, -1) for piece in vocabulary]
            after_space = [self.id_of.get(b" " + piece, -1) for piece in vocabulary]
            self._known = (vocabulary, np.asarray(inside, dtype=np.int64), np.asarray(after_space, dtype=np.int64))
        return self._known[1:]


def _silence(count: int) -> Aligned:
    import numpy as np

    return Aligned(
        np.zeros((count, 1), dtype=np.int64),
        np.full((count, 1), -np.inf, dtype=np.float32),
        np.full(count, -np.inf, dtype=np.float32),
        np.full(count, -np.inf, dtype=np.float32),
        np.full(count, -1),
        np.zeros(0, dtype=np.float32),
    )
