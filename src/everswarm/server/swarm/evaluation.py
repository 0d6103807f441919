"""Asks every strategy every question and notes what came back and what it cost. Knows no model: `ask` does.

Paired: all strategies answer the same questions, question by question, so that what changes while it runs (a busy
machine, a quota) meets all of them alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from everswarm.errors import ConfigurationError, EverswarmError
from everswarm.server.swarm.evaluation_files import Prompt
from everswarm.server.swarm.scoring import Score, Scored
from everswarm.server.swarm.scoring import score as score_of


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a strategy gave for one question, and what all its calls cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    calls: int
    seconds: float
    strategy_used: str
    degraded: str | None = None  # why it was not the strategy that was asked for
    error: str | None = None  # why there is no answer

    @property
    def tokens(self) -> int:
        """All tokens, of the questions and of the answers."""
        return self.prompt_tokens + self.completion_tokens


Ask = Callable[[Prompt, str], Awaitable[Attempt]]


class Run(NamedTuple):
    """One strategy on one question."""

    prompt: Prompt
    strategy: str
    attempt: Attempt
    scored: Scored

    @property
    def is_failed(self) -> bool:
        """Whether there is no answer."""
        return self.attempt.error is not None


async def evaluate(
    prompts: Sequence[Prompt],
    strategies: Sequence[str],
    ask: Ask,
    *,
    concurrency: int,
    on_progress: Callable[[Run], None],
    score: Score = score_of,
) -> list[Run]:
    """Return a run for each of `prompts` with each of `strategies`, in that order.

    Which strategy is first changes from question to question: an engine that has just read a prompt reads it faster.
    An attempt that fails scores 0. When cancelled, `on_progress` has had all that is finished.

    Args:
        prompts: what is asked.
        strategies: by name.
        ask: has one question answered with one strategy.
        concurrency: attempts side by side.
        on_progress: is given every run as it ends.
        score: says how good an answer is.

    Raises:
        ConfigurationError: what `ask` raises of it ends the evaluation: it would be the same for all.
    """
    waiting = _in_turn(prompts, strategies)
    runs: list[Run] = []

    async def work() -> None:
        for prompt, strategy in waiting:
            attempt = await _attempt(ask, prompt, strategy)
            scored = Scored(0.0, False) if attempt.error is not None else score(prompt, attempt.text)
            runs.append(run := Run(prompt, strategy, attempt, scored))
            on_progress(run)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(max(1, min(concurrency, len(prompts) * len(strategies)))):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    places = {strategy: place for place, strategy in enumerate(strategies)}
    return sorted(runs, key=lambda run: (run.prompt.number, places[run.strategy]))


def _in_turn(prompts: Sequence[Prompt], strategies: Sequence[str]) -> Iterator[tuple[Prompt, str]]:
    for position, prompt in enumerate(prompts):
        first = position % len(strategies)
        for strategy in (*strategies[first:], *strategies[:first]):
            yield prompt, strategy


async def _attempt(ask: Ask, prompt: Prompt, strategy: str) -> Attempt:
    began = time.perf_counter()
    try:
        return await ask(prompt, strategy)
    except ConfigurationError:
        raise
    except EverswarmError as error:
        return Attempt("", 0, 0, 0, time.perf_counter() - began, strategy, error=str(error))
