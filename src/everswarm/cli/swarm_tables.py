"""An evaluation of strategies as tables and words, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from everswarm.cli.screen import console, print_table

if TYPE_CHECKING:
    from everswarm.server.swarm.evaluation import Run
    from everswarm.server.swarm.evaluation_figures import Estimate, StrategyFigures, Verdict
    from everswarm.server.swarm.evaluation_files import PromptFile

KIND_PROMPTS = 5  # a kind with fewer has no row of its own
COLUMNS = ("strategy", "#n", "#quality [95 %]", "#tokens", "#calls", "#seconds", "#quality per 1,000 tokens [95 %]")
REASONS_SHOWN = 3


class Evaluated(NamedTuple):
    """What came of an evaluation."""

    figures: list[StrategyFigures]
    by_kind: dict[str, list[StrategyFigures]]  # of the kinds that were asked
    verdicts: list[Verdict]
    turn_on: dict[str, str]  # strategy by kind
    asked: int  # questions that were to be asked
    answered: int  # of them, those that every strategy was asked
    runs: list[Run]  # all that ended


def evaluated(runs: list[Run], strategies: Sequence[str], *, asked: int, seed: int) -> Evaluated:
    """Return the figures of `runs`, over all and by kind."""
    from everswarm.server.swarm.evaluation_figures import best_shown, judge, measure, paired

    complete = paired(runs, strategies)
    kinds = list(dict.fromkeys(run.prompt.kind for run in complete))
    by_kind: dict[str, list[StrategyFigures]] = {
        kind: measure([run for run in complete if run.prompt.kind == kind], strategies, seed=seed) for kind in kinds
    }
    verdicts = [verdict for kind, figures in by_kind.items() for verdict in judge(figures, kind=kind)]
    return Evaluated(
        figures=measure(complete, strategies, seed=seed),
        by_kind=by_kind,
        verdicts=verdicts,
        turn_on=best_shown(verdicts, by_kind),
        asked=asked,
        answered=len(complete) // len(strategies),
        runs=runs,
    )


def print_file(file: PromptFile) -> None:
    """Say what the file holds, and what of it cannot be used."""
    console.print(
        f"lines read: {file.read}; questions with a reference: {file.distinct}, {file.repeated} repeat one, "
        f"{file.unjudged} say nothing of what is right, {file.error_count} could not be used"
    )
    for line, message in file.errors:
        console.print(f"  line {line}: {message}", markup=False)
    if file.error_count > len(file.errors):
        console.print(f"  … and {file.error_count - len(file.errors)} more")


def print_evaluated(found: Evaluated) -> None:
    """Print the tables, what was odd, the verdicts, and the lines that turn on what is shown to be good."""
    if found.answered < found.asked:
        console.print(
            f"Stopped before the end: these are the {found.answered} of {found.asked} questions that every strategy "
            "was asked.",
            style="bold yellow",
        )
    print_table("Strategies", [*COLUMNS, "#against single"], [_row(row) for row in found.figures])
    large = {kind: rows for kind, rows in found.by_kind.items() if rows[0].prompts >= KIND_PROMPTS}
    if len(found.by_kind) > 1 and large:
        rows = [[kind, *_row(row)] for kind, figures in large.items() for row in figures]
        print_table(f"By kind (of at least {KIND_PROMPTS} questions)", ["kind", *COLUMNS, "#against single"], rows)
    _print_quality(found)
    _print_odd(found)
    for verdict in found.verdicts:
        console.print(f"{verdict.kind}, {verdict.strategy}: {verdict.words}", markup=False)
    if found.turn_on:
        console.print("\nWhat was shown is turned on in everswarm.toml with:\n")
        console.print(toml(found.turn_on), markup=False)


def toml(turn_on: dict[str, str]) -> str:
    """Return the lines for everswarm.toml; empty where there is nothing to turn on."""
    if not turn_on:
        return ""
    return "\n".join(["[swarm.strategies]", *(f'{kind} = "{strategy}"' for kind, strategy in turn_on.items())])


def as_data(found: Evaluated, *, with_runs: bool = False) -> dict[str, Any]:
    """Return everything as JSON has it; the answers too, if `with_runs`."""
    data: dict[str, Any] = {
        "asked": found.asked,
        "answered": found.answered,
        "is_complete": found.answered == found.asked,
        "strategies": [row.model_dump() for row in found.figures],
        "by_kind": {kind: [row.model_dump() for row in rows] for kind, rows in found.by_kind.items()},
        "verdicts": [verdict.model_dump() for verdict in found.verdicts],
        "turn_on": found.turn_on,
        "toml": toml(found.turn_on),
    }
    return {**data, "runs": [_run(run) for run in found.runs]} if with_runs else data


def _run(run: Run) -> dict[str, Any]:
    attempt = run.attempt
    return {
        "line": run.prompt.line,
        "kind": run.prompt.kind,
        "strategy": run.strategy,
        "strategy_used": attempt.strategy_used,
        "quality": run.scored.quality,
        "is_exact": run.scored.is_exact,
        "answer": attempt.text,
        "references": run.prompt.references,
        "prompt_tokens": attempt.prompt_tokens,
        "completion_tokens": attempt.completion_tokens,
        "calls": attempt.calls,
        "seconds": round(attempt.seconds, 3),
        "degraded": attempt.degraded,
        "error": attempt.error,
    }


def _row(row: StrategyFigures) -> list[str]:
    return [
        row.strategy,
        str(row.prompts),
        _interval(row.quality),
        f"{row.tokens:,.0f}",
        f"{row.calls:.2f}",
        f"{row.seconds:.2f}",
        _interval(row.quality_per_thousand_tokens),
        _interval(row.quality_difference, sign="+"),
    ]


def _interval(estimate: Estimate | None, *, sign: str = "") -> str:
    if estimate is None:
        return "–"
    value, low, high = (format(number + 0.0, f"{sign}.3f") for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _print_quality(found: Evaluated) -> None:
    exact = len({run.prompt.number for run in found.runs if run.scored.is_exact})
    numbers = len({run.prompt.number for run in found.runs})
    if exact == numbers:
        console.print("Quality is 1 for a right final answer and 0 for another.")
    elif exact:
        console.print(
            f"Quality is 1 or 0 for the {exact} of {numbers} questions whose final answer can be compared; of the "
            "others, the share of words that answer and reference have in common (F1)."
        )
    else:
        console.print("Quality is the share of words that answer and reference have in common (F1).")


def _print_odd(found: Evaluated) -> None:
    for row in found.figures:
        own = [run.attempt for run in found.runs if run.strategy == row.strategy]
        for count, what, reasons in (
            (row.failed, "failed, and count as 0", [attempt.error for attempt in own]),
            (row.degraded, "were answered with a cheaper strategy", [attempt.degraded for attempt in own]),
        ):
            if count:
                told = list(dict.fromkeys(reason for reason in reasons if reason))[:REASONS_SHOWN]
                console.print(f"{row.strategy}: {count} of {row.prompts} {what}: {'; '.join(told)}", markup=False)
