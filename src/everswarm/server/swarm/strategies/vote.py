"""Ask up to three times, and stop when two answers agree. Only where answers can be compared.

Self-consistency (arXiv 2203.11171) with early stopping (arXiv 2305.11860, 2401.10480). All samples are of the role that
is best for the request: mixing models lowers the average (arXiv 2502.00674).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from everswarm.errors import EverswarmError
from everswarm.server.gateway import Answered
from everswarm.server.swarm.budget import OverBudgetError, Planned
from everswarm.server.swarm.checks import check_free, conclude
from everswarm.server.swarm.comparing import agree, comparable, is_comparable, read_choices
from everswarm.server.swarm.run import Ask, Reply, Run, text_of
from everswarm.server.swarm.strategies.single import single

SAMPLES = 3
TEMPERATURE = 0.7  # of all samples but the first, which is asked as the request says


class Sample(NamedTuple):
    """One answer, and what of it is compared."""

    answered: Answered
    final: str | None


async def vote(run: Run) -> Reply:
    """Return an answer that two of at most three samples give."""
    if not is_comparable(run.question, run.route.kind):
        run.trace.strategy, run.trace.wished_strategy = "single", "vote"
        run.trace.note("vote became single: the answers to this cannot be compared")
        return await single(run)
    samples = await _samples(run, 0, SAMPLES - 1)
    if (agreed := _two_that_agree(samples)) is None:
        run.tell("the answers differ; one more is asked for")
        samples += await _samples(run, SAMPLES - 1, SAMPLES)
        agreed = _two_that_agree(samples)
    chosen, why = (agreed, f"two of {len(samples)} say {agreed.final}") if agreed else _likeliest(run, samples)
    run.trace.found("check", why, why="vote")
    return chosen.answered


def worst_case(run: Run) -> Sequence[Planned]:
    """Three whole answers."""
    role = run.route.role
    return [Planned(role, run.size(role).total)] * SAMPLES


async def _samples(run: Run, start: int, stop: int) -> list[Sample]:
    """Ask for the samples from `start` to `stop`, side by side.

    Raises:
        EverswarmError: none came, and there was none before.
    """
    had_one = run.best is not None
    asked = await run.ask_all([_ask(run, number) for number in range(start, stop)], came=run.came)
    choices = read_choices(run.question)
    samples = [
        Sample(answered, comparable(text_of(answered), kind=run.route.kind, choices=choices))
        for answered in asked
        if isinstance(answered, Answered)
    ]
    if not samples and not had_one:
        raise next(error for error in asked if isinstance(error, EverswarmError | OverBudgetError))
    return samples


def _ask(run: Run, number: int) -> Ask:
    fields = {} if number == 0 else {"temperature": TEMPERATURE, "seed": number}
    return Ask(run.route.role, "vote", f"sample {number + 1}", fields=fields)


def _two_that_agree(samples: Sequence[Sample]) -> Sample | None:
    for one, other in combinations(samples, 2):
        if one.final is not None and other.final is not None and agree(one.final, other.final):
            return one
    return None


def _likeliest(run: Run, samples: Sequence[Sample]) -> tuple[Sample, str]:
    """Return, where no two agree, the first that no free check refutes, one that can be compared before others."""
    ordered = sorted(samples, key=lambda sample: sample.final is None)
    for sample in ordered:
        if conclude(check_free(run.question, run.route.kind, sample.answered.response)).passed is not False:
            return sample, "no two agree; this one passes the free checks"
    return ordered[0], "no two agree, and none passes the free checks"
