"""A teacher behind any OpenAI-compatible endpoint of our gateway, asked in batches, within its quota.

It cannot score given text: it answers the questions itself, and we keep what it thought of its own tokens.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.errors import StageFailedError
from everswarm.schemas.dataset import Example
from everswarm.training.distillation.prompts import teacher_messages
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import check_scored
from everswarm.training.distillation.teachers.endpoint_answer import Answer, AnswerScorer, end_names, read_answer

if TYPE_CHECKING:
    from everswarm.training.distillation.teachers.at_work import Text
    from everswarm.training.workspace import AnswerBatch

log = logging.getLogger(__name__)
DEFAULT_TOP_K = 20  # the most that OpenAI's protocol knows
DEFAULT_ANSWER_TOKENS = 512  # small students learn better from short answers, and each costs quota
# Its own words as it would say them: only so are its log-probabilities those of what it says.
TEMPERATURE = 1.0
# Shown a person's correction it should keep to that, and not wander.
HINDSIGHT_TEMPERATURE = 0.3
FEWER_CANDIDATES = 5  # what older servers give at most
MOST_FAILED_SHARE = 0.5  # of a shard
FEWEST_TO_JUDGE = 8  # questions; of fewer, such as the last ones of a dataset, chance may leave all without an answer
TRIES = 2  # of a question that did not come to its turn in the day that a batch has
NOT_RUN = ("batch_expired", "batch_cancelled")


@dataclass
class _Shard:
    """What became of the questions of one shard."""

    questions: Mapping[str, Example]
    answers: dict[str, Answer] = field(default_factory=dict)
    empty: set[str] = field(default_factory=set)  # answered with nothing
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[Example]:
        done = self.answers.keys() | self.empty | self.errors.keys()
        return [example for name, example in self.questions.items() if name not in done]


class EndpointTeacher:
    """Writes its own answers; gives its log-probabilities of them as far as the endpoint tells any.

    An endpoint that refuses 20 candidates a token is asked for 5, then for the log-probability of the token alone,
    then for the text alone. What it takes is remembered for later shards.
    """

    scores_given_text = False

    def __init__(
        self,
        model: str,
        *,
        hindsight: bool,
        answer_batch: AnswerBatch,
        folder: Path,
        top_k: int = DEFAULT_TOP_K,
        answer_tokens: int = DEFAULT_ANSWER_TOKENS,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            model: a role, a full model name, or `everswarm`.
            hindsight: whether it reads the person's own answer first.
            answer_batch: has questions answered; `Workspace.answer_batch`.
            folder: for the questions of a shard.
            top_k: candidates a token, at most 20.
            answer_tokens: the longest answer.
            on_wait: told what it waits for, now and then.
        """
        self.model = model
        self.top_k = min(top_k, DEFAULT_TOP_K)
        self._hindsight = hindsight
        self._answer_batch = answer_batch
        self._folder = folder
        self._answer_tokens = answer_tokens
        self._on_wait = on_wait or (lambda _text: None)
        wanted: list[dict[str, Any]] = [{"logprobs": True, "top_logprobs": self.top_k}]
        if self.top_k > FEWER_CANDIDATES:
            wanted.append({"logprobs": True, "top_logprobs": FEWER_CANDIDATES})
        self._levels = [*wanted, {"logprobs": True}, {}]
        self._level = 0

    def label(
        self, texts: Sequence[Text], *, batch: str | None, on_batch: Callable[[str], None]
    ) -> Iterator[ScoredText]:
        """Yield its answer to the question of each text that is a target, in their order; a roll-out is none.

        Args:
            texts: of one shard.
            batch: what `on_batch` was told by an earlier try with these texts.
            on_batch: told what to remember, each time that a batch begins.

        Raises:
            StageFailedError: more than half of 8 questions or more have no answer, or log-probabilities are nonsense.
            UnavailableError: the server is away.
        """
        shard = _Shard({text.example.id: text.example for text in texts if text.source == "target"})
        self._ask_all(shard, batch=batch, on_batch=on_batch)
        self._refuse_silence(shard)
        self._tell(shard)
        scorer = AnswerScorer(top_k=self.top_k, ends=end_names(list(shard.answers.values())))
        for name in shard.questions:
            if name not in shard.answers:
                continue
            answer = shard.answers.pop(name)
            scored = scorer.score(name, answer)
            try:
                check_scored(scored)
            except StageFailedError as error:
                raise StageFailedError(
                    f"The endpoint of model '{self.model}' answers nonsense. {error} An endpoint whose "
                    "log-probabilities are wrong can only teach by text: have it refuse 'logprobs', or ask another."
                ) from error
            yield scored

    def close(self) -> None:
        """Nothing is held."""

    def _ask_all(self, shard: _Shard, *, batch: str | None, on_batch: Callable[[str], None]) -> None:
        """Ask until each question has an answer or an error; several batches where the endpoint is choosy."""
        earlier = (batch or "").split()
        asked: list[str] = []  # all batches of this shard: a later try reads them again, and pays for none twice

        def remember(name: str) -> None:
            asked.append(name)
            on_batch(" ".join(asked))

        patience = TRIES + len(earlier)
        while shard.missing and patience:
            resumed = earlier.pop(0) if earlier else None
            known = len(asked)
            lines = self._ask(shard.missing, resumed, remember)
            if resumed is not None and len(asked) == known:  # it was not gone
                asked.append(resumed)
            if self._take(shard, lines):
                log.info("%s refuses %s; it is asked for less", self.model, self._levels[self._level])
                self._level += 1
            else:
                patience -= 1

    def _ask(self, examples: Sequence[Example], batch: str | None, on_batch: Callable[[str], None]) -> Path:
        """Return the file with the lines that came back."""
        self._folder.mkdir(parents=True, exist_ok=True)
        requests = self._folder / "questions.jsonl"
        requests.write_text("".join(json.dumps(self._line(example)) + "\n" for example in examples), encoding="utf-8")
        self._on_wait(f"waiting for endpoint {self.model}: {len(examples)} questions")
        return self._answer_batch(
            requests,
            batch=batch,
            on_batch=on_batch,
            on_wait=lambda text: self._on_wait(f"waiting for endpoint {self.model}: {text}"),
        )

    def _line(self, example: Example) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": [message.model_dump() for message in teacher_messages(example, self._hindsight)],
            "temperature": HINDSIGHT_TEMPERATURE if self._hindsight else TEMPERATURE,
            "max_tokens": self._answer_tokens,
            **self._levels[self._level],
        }
        return {"custom_id": example.id, "method": "POST", "url": "/v1/chat/completions", "body": body}

    def _take(self, shard: _Shard, path: Path) -> bool:
        """Put the lines into `shard`; return whether the endpoint wants to be asked for fewer log-probabilities.

        What did not run stays missing.
        """
        too_much = False
        with path.open(encoding="utf-8") as file:
            for line in file:
                said = json.loads(line)
                name, response = str(said.get("custom_id")), said.get("response") or {}
                if name not in shard.questions or (said.get("error") or {}).get("code") in NOT_RUN:
                    continue
                body = response.get("body")
                if response.get("status_code") == 200:
                    answer = read_answer(body)
                    if answer is None:
                        shard.empty.add(name)
                    else:
                        shard.answers[name] = answer
                    continue
                error = _reason(body) or _reason(said) or "no reason given"
                if "logprob" in error.lower() and self._levels[self._level]:
                    too_much = True
                else:
                    shard.errors[name] = error
        return too_much

    def _refuse_silence(self, shard: _Shard) -> None:
        silent = len(shard.questions) - len(shard.answers)
        if len(shard.questions) < FEWEST_TO_JUDGE or silent <= MOST_FAILED_SHARE * len(shard.questions):
            return
        reason = next(iter(shard.errors.values()), "")
        if not reason:
            reason = "the answers were empty." if shard.empty else "the server did not come to them in a day."
        raise StageFailedError(
            f"The endpoint of model '{self.model}' left {silent} of {len(shard.questions)} questions without an "
            f"answer, more than half: {reason} Look at it with: everswarm doctor, or name another teacher."
        )

    def _tell(self, shard: _Shard) -> None:
        """Say in the log what cannot be used."""
        if shard.empty or shard.errors:
            reason = "".join(f": {error}" for error in list(shard.errors.values())[:1])
            log.warning(
                "%s: %d answers are empty, %d failed%s", self.model, len(shard.empty), len(shard.errors), reason
            )
        for problem, count in Counter(answer.problem for answer in shard.answers.values()).items():
            if problem is not None:
                log.warning("%s: %d answers teach by their text alone: %s", self.model, count, problem)


def _reason(said: object) -> str:
    """Return what an error says, in the forms that endpoints have; nothing where there is none."""
    error = said.get("error") if isinstance(said, dict) else None
    return str((error.get("message") if isinstance(error, dict) else error) or "")
