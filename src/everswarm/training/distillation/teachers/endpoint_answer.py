"""One answer of an OpenAI-compatible endpoint as a scored text. Knows nothing of batches or quotas.

What endpoints write differs: llama.cpp and vLLM add the end of the turn as a last token, others do not; SentencePiece
models have a space before their first word that the answer lacks; llama.cpp joins the tokens of a character that is
cut between them and gives the log-probability of the last alone. What cannot be read for certain is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.teachers.told import left_over, logprob_told

NOT_TOLD = "the endpoint gave none"
NOT_SPELLED = "the tokens do not spell the answer"
JOINED = "a character is cut into tokens of which only the last one's is told"
MALFORMED = "they are not in OpenAI's form"
BEYOND = "one of its tokens is not among those of which the endpoint tells log-probabilities"
LEAST_TOLD = -9000.0  # below: OpenAI's -9999 for its own token where that is not among the likeliest


class Token(NamedTuple):
    """One token of an answer: its bytes, natural log-probability, and what else might have stood there."""

    piece: bytes
    logprob: float
    candidates: list[tuple[bytes, float]]  # the token too, where it is among them


class Answer(NamedTuple):
    """What an endpoint said."""

    text: bytes
    ended: bool  # by itself, not by our limit
    tokens: list[Token]  # none where only the text can be used
    end: Token | None  # the end of the turn, where the endpoint tells it
    problem: str | None  # why there are no tokens


def read_answer(completion: object) -> Answer | None:
    """Return what a `chat.completion` says; None where it says nothing, or is none."""
    try:
        choice = completion["choices"][0]  # type: ignore[index]  # whatever an endpoint sends
        content, finish, logprobs = choice["message"]["content"], choice.get("finish_reason"), choice.get("logprobs")
    except (LookupError, TypeError, AttributeError):
        return None
    if not isinstance(content, str) or not content.strip():
        return None
    text, ended = content.encode("utf-8", "replace"), finish == "stop"
    tokens, problem = _tokens_told(logprobs)
    if problem is not None:
        return Answer(text, ended, [], None, problem)
    end = None
    if ended and (not tokens[-1].piece or not _spells(tokens, text)):
        end = tokens.pop()
    if not tokens or not _spells(tokens, text):
        return Answer(text, ended, [], None, NOT_SPELLED)
    if _joined(tokens) != text:
        tokens[0] = _without_space(tokens[0])
    return Answer(text, ended, tokens, end, None)


def _tokens_told(logprobs: Any) -> tuple[list[Token], str | None]:
    """Return the tokens, or why there are none."""
    try:
        told = (logprobs or {}).get("content")
        if not told:
            return [], NOT_TOLD
        tokens = [_token(entry) for entry in told]
        if any(_is_joined(entry) for entry in told):
            return [], JOINED
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return [], MALFORMED
    return ([], BEYOND) if any(token.logprob <= LEAST_TOLD for token in tokens) else (tokens, None)


def end_names(answers: Sequence[Answer]) -> set[bytes]:
    """Return how the model writes the end of its turn among its tokens, as far as these answers show it."""
    return {answer.end.piece for answer in answers if answer.end is not None} | {END_OF_TURN}


class AnswerScorer:
    """Makes scored texts of the answers of one shard, which share a vocabulary."""

    def __init__(self, *, top_k: int, ends: Collection[bytes]) -> None:
        """Keep `top_k` candidates a token; those in `ends` are the end of the turn."""
        self.top_k = top_k
        self.ends = ends
        self.vocabulary: list[bytes] = []
        self._number: dict[bytes, int] = {}

    def score(self, identifier: str, answer: Answer) -> ScoredText:
        """Return `answer` as the teacher's own text.

        Where it ended and nothing is told of its last token, that has no candidates and all its mass in the tail: it
        says nothing of how likely the end was.
        """
        import numpy as np

        rows = [self._row(token) for token in answer.tokens]
        logprobs = [token.logprob for token in answer.tokens]
        ends = np.cumsum([len(token.piece) for token in answer.tokens], dtype=np.int32)
        if answer.ended and answer.tokens:
            rows.append(([], 0.0) if answer.end is None else self._row(answer.end._replace(piece=END_OF_TURN)))
            logprobs.append(0.0 if answer.end is None else answer.end.logprob)
            ends = np.append(ends, np.int32(len(answer.text)))
        width = self.top_k if rows else 0
        top = np.full((len(rows), width), -1, dtype=np.int32)
        top_logprob = np.full((len(rows), width), -np.inf, dtype=np.float32)
        for place, (found, _) in enumerate(rows):
            top[place, : len(found)] = [self._numbered(piece) for piece, _ in found]
            top_logprob[place, : len(found)] = [logprob for _, logprob in found]
        return ScoredText(
            id=identifier,
            source="teacher",
            text=answer.text,
            ended=answer.ended,
            end=ends.astype(np.int32),
            logprob=np.asarray(logprobs, dtype=np.float32),
            vocabulary=self.vocabulary,
            top=top,
            top_logprob=top_logprob,
            tail_logprob=np.asarray([tail for _, tail in rows], dtype=np.float32),
        )

    def _row(self, token: Token) -> tuple[list[tuple[bytes, float]], float]:
        """Return the candidates by falling probability, and the log of the mass that they leave."""
        found: dict[bytes, float] = {}
        for piece, logprob in sorted(token.candidates or [(token.piece, token.logprob)], key=lambda told: -told[1]):
            found.setdefault(END_OF_TURN if piece in self.ends else piece, logprob)  # of equals the likelier counts
        kept = list(found.items())[: self.top_k]
        return kept, left_over(logprob for _, logprob in kept)

    def _numbered(self, piece: bytes) -> int:
        number = self._number.setdefault(piece, len(self.vocabulary))
        if number == len(self.vocabulary):
            self.vocabulary.append(piece)
        return number


def _token(entry: Mapping[str, Any]) -> Token:
    told = [(_piece(candidate), logprob_told(candidate["logprob"])) for candidate in entry.get("top_logprobs") or []]
    candidates = [(piece, logprob) for piece, logprob in told if piece is not None and not logprob <= LEAST_TOLD]
    piece = _piece(entry)
    if piece is None:
        raise ValueError("a token without its bytes")
    return Token(piece, logprob_told(entry["logprob"]), candidates)


def _piece(told: Mapping[str, Any]) -> bytes | None:
    """Return the bytes of a token; None where they are half a character that nobody spelled out."""
    if (data := told.get("bytes")) is not None:
        if not isinstance(data, list):  # of a number `bytes` would make so many zeros
            raise TypeError("bytes that are no list")
        return bytes(data)
    token = str(told["token"])
    return None if "\ufffd" in token else token.encode("utf-8", "replace")


def _is_joined(entry: Mapping[str, Any]) -> bool:
    """Say whether llama.cpp (which tells ids) joined tokens here: the one of this id has other bytes.

    Where that one is not among the candidates nobody can tell; then a character of several bytes counts as joined.
    """
    own = entry.get("id")
    piece = _piece(entry)
    if own is None or piece is None or piece.isascii():
        return False
    same = [_piece(candidate) for candidate in entry.get("top_logprobs") or [] if candidate.get("id") == own]
    return not same or same[0] != piece


def _joined(tokens: Sequence[Token]) -> bytes:
    return b"".join(token.piece for token in tokens)


def _spells(tokens: Sequence[Token], text: bytes) -> bool:
    return _joined(tokens) in (text, b" " + text)


def _without_space(token: Token) -> Token:
    candidates = [(piece.removeprefix(b" "), logprob) for piece, logprob in token.candidates]
    return Token(token.piece.removeprefix(b" "), token.logprob, [told for told in candidates if told[0]])
