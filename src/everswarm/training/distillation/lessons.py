"""Examples and what teachers said of them, put into the student's tokens and weighed by the recipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import TextSource
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation.alignment import Aligned, View, align
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.token_bytes import (
    fallback_ids,
    ids_by_bytes,
    space_in_front,
    token_bytes,
    token_ends,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

KNOWN_SHARDS = 8  # whose vocabularies are looked up once


@dataclass(frozen=True)
class Lesson:
    """One text in the student's tokens: prompt, then answer, with all that its `n` answer tokens are compared with.

    The arrays are those of `head.AnswerTargets`.
    """

    ids: list[int]
    prompt_tokens: int
    source: TextSource
    top_ids: NDArray[np.int32]
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


class _Text(NamedTuple):
    """A text to learn from, and the views of it with the weight of each one's opinion."""

    source: TextSource
    data: bytes
    ended: bool
    views: Sequence[tuple[ScoredText, float]]
    weight: float  # of the whole


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
        last_ids = [*tokenizer.all_special_ids, *fallback_ids(tokenizer)]
        self.id_of = ids_by_bytes(self.pieces, last_ids) | {END_OF_TURN: self.end_of_turn}
        # of the last shards, one or more a teacher
        self._known: deque[tuple[Sequence[bytes], NDArray[np.int64], NDArray[np.int64]]] = deque(maxlen=KNOWN_SHARDS)

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
        prompt = prompt_ids(self.tokenizer, example.messages)
        texts = _texts(example, list(zip(scored, weight_of or [1.0] * len(scored), strict=True)))
        try:
            made = [self._lesson(prompt, text) for text in texts]
        except StageFailedError as error:
            raise StageFailedError(f"Example '{example.id}': {error}") from error
        return [lesson for lesson in made if lesson is not None]

    def _lesson(self, prompt: list[int], text: _Text) -> Lesson | None:
        answer = answer_ids(self.tokenizer, text.data.decode())
        end = token_ends(answer, self.pieces, text.data)
        ids = [*prompt, *answer, *([self.end_of_turn] if text.ended else [])][: self.recipe.max_tokens]
        kept = len(ids) - len(prompt)
        if kept <= 0:
            return None
        seen = []
        for scored, weight in text.views:
            if scored.tokens:
                inside, after_space = self._student_ids(scored.vocabulary)
                first = after_space if space_in_front(answer, self.pieces, text.data) else inside
                seen.append(View(scored, inside, first, weight))
        aligned = align(seen, end[:kept], ended=kept > len(answer)) if seen else _silence(kept)
        return self._weighed(ids, len(prompt), text, aligned)

    def _weighed(self, ids: list[int], prompt_tokens: int, text: _Text, aligned: Aligned) -> Lesson:
        import numpy as np

        recipe = self.recipe
        soft = recipe.soft_target_weight
        speaks = aligned.top_logprobs.max(axis=1, initial=-np.inf) > -np.inf
        exact = aligned.exact & speaks
        in_chunk = (aligned.chunk >= 0) & (recipe.chunk_weight > 0)
        position = np.where(exact, soft, 0.0) + np.where(aligned.first & speaks, soft * recipe.first_token_weight, 0.0)
        position = (text.weight * position).astype(np.float32)
        nothing = np.zeros_like(position)
        own_words = text.source == "rollout"  # what the student wrote itself is no text to learn by heart
        return Lesson(
            ids=ids,
            prompt_tokens=prompt_tokens,
            source=text.source,
            top_ids=aligned.top_ids.astype(np.int32),
            top_logprobs=aligned.top_logprobs,
            tail_logprob=aligned.tail_logprob,
            logprob=np.where(speaks, aligned.logprob, -np.inf).astype(np.float32),
            text_weight=nothing if own_words else np.full_like(position, text.weight),
            soft_share=np.where(exact | in_chunk, soft, 0.0).astype(np.float32),
            forward_weight=nothing if own_words else position,
            reverse_weight=position if own_words else nothing,
            chunk=aligned.chunk,
            chunk_logprob=aligned.chunk_logprob,
            chunk_weight=np.full(
                len(aligned.chunk_logprob), text.weight * soft * recipe.chunk_weight, dtype=np.float32
            ),
        )

    def _student_ids(self, vocabulary: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the student's token of each entry, and of each with a space before it (entries,); -1 for none.

        Texts of one shard share a vocabulary.
        """
        import numpy as np

        for known in self._known:
            if known[0] is vocabulary:
                return known[1:]
        inside = [self.id_of.get(piece, -1) for piece in vocabulary]
        after_space = [self.id_of.get(b" " + piece if piece else END_OF_TURN, -1) for piece in vocabulary]
        known = (vocabulary, np.asarray(inside, dtype=np.int64), np.asarray(after_space, dtype=np.int64))
        self._known.append(known)
        return known[1:]


def _texts(example: Example, said: Sequence[tuple[ScoredText, float]]) -> list[_Text]:
    """Return the target, the student's own answer and the teachers' own answers, each with all views of it.

    Teachers' own answers weigh as their authors do, the heaviest author's whole.

    Raises:
        StageFailedError: a view is of another text than the target.
    """
    target = example.target.encode()
    views: dict[TextSource, list[tuple[ScoredText, float]]] = {"target": [], "rollout": [], "teacher": []}
    for scored, weight in said:
        if scored.source == "target" and not target.startswith(scored.text):
            raise StageFailedError(
                f"The soft targets of example '{example.id}' are of another text than its target; "
                "they belong to another dataset. Label this dataset again."
            )
        views[scored.source].append((scored, weight))
    texts = [_Text("target", target, True, views["target"], 1.0)]
    if rollout := views["rollout"]:  # teachers may have scored it to different places
        longest = max((scored for scored, _ in rollout), key=lambda scored: (len(scored.text), scored.ended))
        texts.append(_Text("rollout", longest.text, longest.ended, rollout, 1.0))
    authors: dict[tuple[bytes, bool], list[tuple[ScoredText, float]]] = {}
    for scored, weight in views["teacher"]:
        authors.setdefault((scored.text, scored.ended), []).append((scored, weight))
    totals = {key: sum(weight for _, weight in of_text) for key, of_text in authors.items()}
    for (text, ended), of_text in sorted(authors.items(), key=lambda item: item[0]):
        weight = totals[text, ended] / max(totals.values())
        texts.append(_Text("teacher", text, ended, of_text, weight))
    return texts


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
