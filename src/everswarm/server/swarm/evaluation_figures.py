"""The numbers of an evaluation of strategies, with a percentile bootstrap over questions (95 %), and what they allow.

All strategies are resampled with the same draws, which makes the differences paired (Koehn 2004, W04-3250). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from everswarm.schemas.base import Record
from everswarm.server.swarm.evaluation import Run

BASELINE = "single"
RESAMPLES = 2000
VERDICT_PROMPTS = 20  # of a kind; the interval of fewer is narrower than what is known
_EDGES = (0.025, 0.975)


class Estimate(Record):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class StrategyFigures(Record):
    """One strategy over the questions that every strategy has been asked; means are of one question."""

    strategy: str
    prompts: int
    failed: int  # no answer; each counts as quality 0
    degraded: int  # answered with a cheaper strategy than this
    quality: Estimate  # 0 to 1
    tokens: float  # prompts and answers of all calls
    calls: float
    seconds: float
    quality_per_thousand_tokens: Estimate | None  # sum over sum; None where no tokens were used
    quality_difference: Estimate | None  # to the baseline, paired; None for itself, and where it was not asked
    per_thousand_difference: Estimate | None


class Verdict(Record):
    """Whether a strategy may be on by default for a kind of request."""

    kind: str
    strategy: str
    prompts: int
    is_shown: bool  # at or above the baseline at equal tokens
    words: str  # why, or why not


class _Column(NamedTuple):
    """What one strategy gave, question by question."""

    quality: list[float]
    tokens: list[int]


def paired(runs: Sequence[Run], strategies: Sequence[str]) -> list[Run]:
    """Return the runs of the questions that every strategy has been asked, in the order of the questions."""
    asked: dict[int, set[str]] = {}
    for run in runs:
        asked.setdefault(run.prompt.number, set()).add(run.strategy)
    whole = {number for number, by in asked.items() if by >= set(strategies)}
    return sorted((run for run in runs if run.prompt.number in whole), key=lambda run: run.prompt.number)


def measure(
    runs: Sequence[Run], strategies: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[StrategyFigures]:
    """Return the figures of each of `strategies`; the same for the same `seed`.

    Args:
        runs: what was asked; questions that some strategy has not been asked are left out.
        strategies: in the order of the result.
        seed: of the draws.
        resamples: how many.
    """
    complete = paired(runs, strategies)
    by_strategy = {name: [run for run in complete if run.strategy == name] for name in strategies}
    columns = {
        name: _Column([run.scored.quality for run in own], [run.attempt.tokens for run in own])
        for name, own in by_strategy.items()
    }
    if not complete:
        return []
    draws = _resample(columns, seed=seed, resamples=resamples)
    return [_figures(name, by_strategy[name], columns, draws) for name in strategies]


def judge(figures: Sequence[StrategyFigures], *, kind: str) -> list[Verdict]:
    """Return for each strategy but the baseline whether it is at or above it at equal tokens, for `kind`.

    It is where its quality is not below (lower end of the paired difference at least 0) for no more tokens; or where
    its quality per token is not below in the same sense, and its quality is not lower.
    """
    base = next((row for row in figures if row.strategy == BASELINE), None)
    if base is None:
        return []
    verdicts = []
    for row in figures:
        if row is not base:
            is_shown, words = _judge_one(row, base)
            verdicts.append(
                Verdict(kind=kind, strategy=row.strategy, prompts=row.prompts, is_shown=is_shown, words=words)
            )
    return verdicts


def best_shown(verdicts: Sequence[Verdict], figures_by_kind: dict[str, list[StrategyFigures]]) -> dict[str, str]:
    """Return by kind the strategy to turn on: of those that are shown, the best, then the cheapest."""
    found: dict[str, str] = {}
    for kind, figures in figures_by_kind.items():
        shown = {verdict.strategy for verdict in verdicts if verdict.kind == kind and verdict.is_shown}
        rows = [row for row in figures if row.strategy in shown]
        if rows:
            found[kind] = min(rows, key=lambda row: (-row.quality.value, row.tokens)).strategy
    return found


def _judge_one(row: StrategyFigures, base: StrategyFigures) -> tuple[bool, str]:
    quality, rate = row.quality_difference, row.per_thousand_difference
    if doubt := _doubt(row, base):
        return False, f"not shown: {doubt}"
    if quality is not None and quality.low >= 0 and row.tokens <= base.tokens:
        return True, f"at or above {BASELINE}: not worse, for no more tokens"
    if rate is not None and rate.low >= 0:
        return True, f"at or above {BASELINE} at equal tokens: not less quality per 1,000 tokens"
    times = f"{row.tokens / base.tokens:.1f} times the tokens" if base.tokens else "more tokens"
    gain = "better" if quality is not None and quality.low > 0 else "not shown to be as good or better"
    return False, f"not shown: {gain}, for {times}"


def _doubt(row: StrategyFigures, base: StrategyFigures) -> str:
    """Return why nothing can be concluded in favour of a strategy; empty where something can."""
    difference = row.quality_difference
    doubts = (
        (row.prompts < VERDICT_PROMPTS, f"{row.prompts} questions are too few; at least {VERDICT_PROMPTS} are needed"),
        (row.quality.value == base.quality.value == 0, f"neither it nor {BASELINE} had anything right"),
        (row.failed > base.failed, f"it failed {row.failed} times, {BASELINE} {base.failed} times"),
        (2 * row.degraded > row.prompts, f"{row.degraded} of {row.prompts} were answered with a cheaper strategy"),
        (difference is not None and difference.high < 0, f"its answers are worse than those of {BASELINE}"),
    )
    return next((words for is_so, words in doubts if is_so), "")


def _figures(
    name: str, own: Sequence[Run], columns: dict[str, _Column], draws: dict[str, list[tuple[float, float]]]
) -> StrategyFigures:
    count = len(own)
    is_compared = name != BASELINE and BASELINE in columns
    mine, points = draws[name], _sums(columns[name])
    base, base_points = (draws[BASELINE], _sums(columns[BASELINE])) if is_compared else ([], (0.0, 0.0))
    return StrategyFigures(
        strategy=name,
        prompts=count,
        failed=sum(run.is_failed for run in own),
        degraded=sum(run.attempt.degraded is not None for run in own),
        quality=_estimate(points[0] / count, [quality / count for quality, _ in mine]),
        tokens=points[1] / count,
        calls=sum(run.attempt.calls for run in own) / count,
        seconds=sum(run.attempt.seconds for run in own) / count,
        quality_per_thousand_tokens=_rate_estimate([points], [mine]),
        quality_difference=_estimate(
            (points[0] - base_points[0]) / count,
            [(quality - other) / count for (quality, _), (other, _) in zip(mine, base, strict=True)],
        )
        if is_compared
        else None,
        per_thousand_difference=_rate_estimate([points, base_points], [mine, base]) if is_compared else None,
    )


def _rate_estimate(
    points: Sequence[tuple[float, float]], draws: Sequence[list[tuple[float, float]]]
) -> Estimate | None:
    """Return quality per 1,000 tokens, or of two the difference; None where one used no tokens in some resample."""
    if any(tokens == 0 for _, tokens in (*points, *(sums for column in draws for sums in column))):
        return None

    def value(sums: Sequence[tuple[float, float]]) -> float:
        first, *others = (1000 * quality / tokens for quality, tokens in sums)
        return first - sum(others)

    return _estimate(value(points), [value(sums) for sums in zip(*draws, strict=True)])


def _resample(columns: dict[str, _Column], *, seed: int, resamples: int) -> dict[str, list[tuple[float, float]]]:
    """Return for each strategy the sums of quality and tokens in each resample; a draw is the same for all."""
    count = len(next(iter(columns.values())).quality)
    random, everyone = Random(seed), range(count)
    draws: dict[str, list[tuple[float, float]]] = {name: [] for name in columns}
    for _ in range(resamples):
        drawn = random.choices(everyone, k=count)
        for name, column in columns.items():
            quality = sum(map(column.quality.__getitem__, drawn))
            draws[name].append((quality, sum(map(column.tokens.__getitem__, drawn))))
    return draws


def _sums(column: _Column) -> tuple[float, float]:
    return sum(column.quality), sum(column.tokens)


def _estimate(value: float, values: list[float]) -> Estimate:
    ordered = sorted(values)
    low, high = (_quantile(ordered, share) for share in _EDGES)
    return Estimate(value=value, low=low, high=high)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile with linear interpolation between neighbours."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
