"""A teacher on a vLLM server, which scores given text: `prompt_logprobs` of its `/v1/completions`.

We send token ids, so that the server cuts nothing by its own rules. What it answers (vLLM 0.6 to 0.20): a list with one
entry for each token of the prompt, the first null, else by token id `{logprob, rank, decoded_token}` of the k likeliest
tokens and of the token itself; natural logarithms at temperature 1, -9999 for what is impossible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everswarm.errors import StageFailedError
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.prompts import Template, end_of_turn_id, prompt_ids, teacher_messages
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import check_scored
from everswarm.training.distillation.teachers.at_work import Text
from everswarm.training.distillation.teachers.given_text import (
    DEFAULT_TOP_K,
    MAX_TEXT_TOKENS,
    TeacherVocabulary,
    TokenScores,
    cut_prompt,
)
from everswarm.training.distillation.teachers.told import left_over, logprob_told
from everswarm.training.distillation.teachers.vllm_server import VllmServer
from everswarm.training.distillation.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMPOSSIBLE = -9999.0  # vLLM's word for a probability of 0
DIFFERENT_SHARE = 0.5  # of the tokens that the server writes otherwise, from which its tokenizer is another

Score = tuple[float, list[tuple[int, float]]]  # of a token: its log-probability, and the candidates' by falling


class VllmTeacher:
    """Scores texts with the model of one vLLM server."""

    scores_given_text = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        tokenizer: PreTrainedTokenizerBase,
        hindsight: bool,
        template: Template = "chat",
        top_k: int = DEFAULT_TOP_K,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        """Prepare; the server is asked with the first text. A key is taken from EVERSWARM_TEACHER_KEY.

        Args:
            model: as the server names it.
            base_url: such as http://127.0.0.1:8001/v1.
            tokenizer: the teacher's own.
            hindsight: whether it reads the person's own answer before it scores.
            template: `plain` for a base model.
            top_k: candidates a token.
            max_text_tokens: tokens scored of one text.
        """
        self.model = model
        self._tokenizer = tokenizer
        self._hindsight, self._template = hindsight, template
        self._max_text_tokens = max_text_tokens
        pieces = token_bytes(tokenizer)
        end_of_turn = end_of_turn_id(tokenizer) if template == "chat" else None
        self._vocabulary = TeacherVocabulary(pieces, end_of_turn=end_of_turn, head_rows=len(pieces))
        self._nameless = set(self._vocabulary.nameless) - {end_of_turn}
        self.top_k = self._vocabulary.most_candidates(top_k)
        self._server = VllmServer(base_url)
        self._context_tokens: int | None = None

    def label(
        self, texts: Sequence[Text], *, batch: str | None, on_batch: Callable[[str], None]
    ) -> Iterator[ScoredText]:
        """Yield what the model thinks of each text. There are no batches to remember.

        Raises:
            StageFailedError: the server has another model or tokenizer, tells no `prompt_logprobs`, or tells nonsense.
            UnavailableError: it does not answer.
        """
        if self._context_tokens is None:
            self._context_tokens = self._server.context_tokens(self.model)
        for text in texts:
            yield self._score(text)

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _score(self, shown: Text) -> ScoredText:
        import numpy as np

        prompt = prompt_ids(self._tokenizer, teacher_messages(shown.example, self._hindsight), self._template)
        ids = answer_ids(self._tokenizer, shown.completion)
        limit_tokens = self._max_text_tokens
        if self._context_tokens:
            limit_tokens = min(limit_tokens, self._context_tokens // 2)
        answer = self._vocabulary.answer(shown, ids, limit_tokens=limit_tokens)
        if self._context_tokens:
            prompt = cut_prompt(prompt, self._context_tokens - len(answer.ids) - 1)  # it must write one token
        told = self._server.prompt_logprobs(self.model, [*prompt, *answer.ids], self.top_k)
        scores = self._arrays(self._read(shown.example.id, answer.ids, told[len(prompt) :]))
        scored = self._vocabulary.scored(shown, answer, scores)
        scored.top[np.isneginf(scored.top_logprob)] = -1
        check_scored(scored)
        return scored

    def _read(self, name: str, answer: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> list[Score]:
        """Return what the server says of each token of the answer.

        Raises:
            StageFailedError: it is not in vLLM's form, or of other tokens.
        """
        try:
            differing = sum(self._differs(token, row[str(token)]) for token, row in zip(answer, rows, strict=True))
            scores = [self._score_of(token, row) for token, row in zip(answer, rows, strict=True)]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StageFailedError(
                f"{self._server.name} answers for example '{name}' with prompt_logprobs that are not vLLM's "
                f"({type(error).__name__}: {error}). Use a vLLM server, version 0.6 or newer."
            ) from error
        if differing > DIFFERENT_SHARE * len(answer):
            raise StageFailedError(
                f"{self._server.name} reads {differing} of the {len(answer)} tokens of example '{name}' as other text: "
                f"the tokenizer given for the teacher is not that of '{self.model}'. Name the folder of that model."
            )
        return scores

    def _score_of(self, token: int, row: Mapping[str, Any]) -> Score:
        told = ((int(number), logprob_told(entry["logprob"])) for number, entry in row.items())
        named = [
            (number, logprob)
            for number, logprob in told
            if logprob != IMPOSSIBLE and number < len(self._vocabulary.pieces) and number not in self._nameless
        ]
        named.sort(key=lambda candidate: -candidate[1])
        return logprob_told(row[str(token)]["logprob"]), named[: self.top_k]

    def _differs(self, token: int, entry: Mapping[str, Any]) -> bool:
        """Say whether the server spells a plain token otherwise; servers strip spaces and name special tokens."""
        decoded, piece = entry.get("decoded_token"), self._vocabulary.pieces[token].strip()
        is_plain = token != self._vocabulary.end_of_turn and piece != b"" and piece.isascii()
        return is_plain and decoded is not None and str(decoded).strip() != piece.decode()

    def _arrays(self, scores: Sequence[Score]) -> TokenScores:
        import numpy as np

        top = np.full((len(scores), self.top_k), -1, dtype=np.int32)
        top_logprob = np.full((len(scores), self.top_k), -np.inf, dtype=np.float32)
        for place, (_, candidates) in enumerate(scores):
            top[place, : len(candidates)] = [number for number, _ in candidates]
            top_logprob[place, : len(candidates)] = [logprob for _, logprob in candidates]
        logprob = np.asarray([logprob for logprob, _ in scores], dtype=np.float32)
        tail = [left_over(logprob for _, logprob in candidates) for _, candidates in scores]
        return TokenScores(logprob, top, top_logprob, np.asarray(tail, dtype=np.float32))
