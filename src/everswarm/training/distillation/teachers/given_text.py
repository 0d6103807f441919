"""What teachers that score a given text have in common: the answer's tokens by bytes, and their candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from everswarm.errors import StageFailedError
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.token_bytes import space_in_front, token_ends

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everswarm.training.distillation.teachers.at_work import Text

DEFAULT_TOP_K = 20
MAX_TEXT_TOKENS = 1024  # scored of one text; the rest of a longer one is learnt from the text alone
GROUP = 64  # the top k lie in the k groups with the highest maxima; finding them so takes a third of the time


class AnswerTokens(NamedTuple):
    """A completion in a teacher's tokens, its end of turn among them where `ended`."""

    ids: list[int]
    end: NDArray[np.int32]  # (tokens,), the byte after each
    text: bytes  # as far as it is scored
    ended: bool
    space_in_front: bool  # that the tokenizer added


class TokenScores(NamedTuple):
    """Log-probabilities (nats) of an answer's tokens, candidates by token id."""

    logprob: NDArray[np.float32]  # (tokens,)
    top: NDArray[np.int32]  # (tokens, k), by falling probability
    top_logprob: NDArray[np.float32]  # (tokens, k)
    tail_logprob: NDArray[np.float32]  # (tokens,)


class TeacherVocabulary:
    """A teacher's tokens as bytes."""

    def __init__(self, pieces: Sequence[bytes], *, end_of_turn: int | None, head_rows: int) -> None:
        """Name every token.

        Args:
            pieces: bytes of every token id; empty where an id has no token.
            end_of_turn: the token that ends an answer. None for a base model, which ends documents, not turns: what it
                thinks of an end would teach the student to talk on.
            head_rows: how many logits the model gives a position.

        Raises:
            StageFailedError: there are more tokens than logits.
        """
        if len(pieces) > head_rows:
            raise StageFailedError(
                f"The teacher's tokenizer has {len(pieces)} tokens and its head only {head_rows} rows: they are not of "
                "one model. Put the tokenizer that belongs to the weights into their folder."
            )
        self.pieces = pieces
        self.end_of_turn = end_of_turn
        # ids without a token and rows that only pad the matrix can be no candidate; their mass is in the tail
        words = list(pieces) + [b""] * (head_rows - len(pieces))
        self.nameless = [number for number, word in enumerate(words) if not word]
        if end_of_turn is not None:
            words[end_of_turn] = END_OF_TURN
        spaced = [number for number, word in enumerate(words) if word[:1] == b" "]
        self._without_space = np.arange(head_rows, dtype=np.int32)
        self._without_space[spaced] = np.arange(head_rows, head_rows + len(spaced), dtype=np.int32)
        self._words = words + [words[number][1:] for number in spaced]
        self._only_space = np.asarray([number for number in spaced if words[number] == b" "], dtype=np.int32)

    def most_candidates(self, top_k: int) -> int:
        """Return `top_k`, or how many tokens there are."""
        return min(top_k, len(self._without_space) - len(self.nameless))

    def answer(self, text: Text, ids: list[int], *, limit_tokens: int) -> AnswerTokens:
        """Return the completion's tokens `ids` with their places; beyond `limit_tokens` cut at a whole character.

        Raises:
            StageFailedError: the completion is empty, or its tokens do not spell it.
        """
        if not ids:
            raise StageFailedError(
                f"Example '{text.example.id}' has an empty completion ({text.source}): no teacher can say anything of "
                "it. Remove it from the feedback, and curate again."
            )
        data = text.completion.encode()
        end = token_ends(ids, self.pieces, data)
        spaced = space_in_front(ids, self.pieces, data)
        kept = len(ids)
        if kept >= limit_tokens:
            kept = limit_tokens
            while kept > 1 and _inside_character(data, int(end[kept - 1])):
                kept -= 1
            return AnswerTokens(ids[:kept], end[:kept], data[: end[kept - 1]], ended=False, space_in_front=spaced)
        if self.end_of_turn is None:
            return AnswerTokens(ids, end, data, ended=False, space_in_front=spaced)
        end = np.append(end, np.int32(len(data)))
        return AnswerTokens([*ids, self.end_of_turn], end, data, ended=True, space_in_front=spaced)

    def scored(self, text: Text, answer: AnswerTokens, scores: TokenScores) -> ScoredText:
        """Return `scores` with candidates by their bytes.

        Where the tokenizer put a space in front of the text, it is none of the first candidates' bytes either.
        """
        top, top_logprob, tail = scores.top, scores.top_logprob, scores.tail_logprob
        if answer.space_in_front:
            top, top_logprob, tail = top.copy(), top_logprob.copy(), tail.copy()
            nothing = np.isin(top[0], self._only_space)  # a space that is no text: what follows it is not known
            tail[0] = np.logaddexp.reduce([*top_logprob[0, nothing], tail[0]])
            order = np.argsort(nothing, kind="stable")
            top[0] = np.where(nothing | (top[0] < 0), -1, self._without_space[top[0]])[order]
            top_logprob[0] = np.where(nothing, -np.inf, top_logprob[0])[order]
        return ScoredText(
            id=text.example.id,
            source=text.source,
            text=answer.text,
            ended=answer.ended,
            end=answer.end,
            logprob=scores.logprob,
            vocabulary=self._words,
            top=top,
            top_logprob=top_logprob,
            tail_logprob=tail,
        )


def cut_prompt(prompt: list[int], room: int) -> list[int]:
    """Return the end of `prompt` (tokens,) where it has more than `room` tokens, its first one before it.

    Of a long conversation the end counts; the first token begins the text, and without it some models are lost.
    """
    return prompt if len(prompt) <= room else [prompt[0], *prompt[len(prompt) - max(room, 1) + 1 :]]


def not_a_number(model: str, where: str) -> StageFailedError:
    """Return the error of logits that are not finite; `where` says of what, such as `example 'a1'`."""
    return StageFailedError(
        f"The teacher {model} gave values that are not numbers for {where}. Half precision overflows in some models, "
        "such as Qwen2 on cards older than Ampere: set the teacher's precision to float32 or nf4. If it is float32 "
        "already, its weights are broken: fetch them again."
    )


def _inside_character(data: bytes, place: int) -> bool:
    return place < len(data) and data[place] & 0b1100_0000 == 0b1000_0000
