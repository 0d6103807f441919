"""What the demo found: a record for programs, tables for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from everswarm.cli.cycle_table import evaluation_of, print_outcome, print_scores, stage_row
from everswarm.cli.screen import console, print_table, seconds, size
from everswarm.schemas.job import Cycle


@dataclass
class Step:
    """One line of the demo's story."""

    name: str
    what: str
    seconds: float
    size_bytes: int | None = None


@dataclass
class DeviceAnswer:
    """A held-out question on the device, before and after the update."""

    question: str
    before: str
    after: str
    before_passes: bool | None  # None where no rule can tell
    after_passes: bool | None


@dataclass
class FamilyScore:
    """How many held-out answers of one family passed their rule."""

    family: str
    before: int
    after: int
    total: int


@dataclass
class DemoReport:
    """Everything that the demo prints at its end."""

    server: str
    home: str
    seed: int
    steps: list[Step] = field(default_factory=list)
    cycle: Cycle | None = None
    answers: list[DeviceAnswer] = field(default_factory=list)
    shown: int = 3
    families: list[FamilyScore] = field(default_factory=list)
    base_bytes: int = 0
    adapter_bytes: int = 0
    first_sync_bytes: int = 0
    update_bytes: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        plain = asdict(self)
        plain["cycle"] = self.cycle.model_dump(mode="json") if self.cycle else None
        return plain


def print_report(report: DemoReport) -> None:
    """Print the story, the scores, the answers and the bytes."""
    _print_steps(report)
    evaluation = evaluation_of(report.cycle) if report.cycle else None
    if evaluation is not None:
        print_scores(evaluation)
    for answer in report.answers[: report.shown]:
        _print_answer(answer)
    if report.families:
        rows = [
            (item.family, f"{item.before} / {item.total}", f"{item.after} / {item.total}") for item in report.families
        ]
        print_table(
            "Held-out questions answered right and in the house style, on the device",
            ["kind", "#before", "#after"],
            rows,
        )
    _print_bytes(report)
    if report.cycle is not None:
        print_outcome(report.cycle)
    _print_cost(report)


def _print_steps(report: DemoReport) -> None:
    rows: list[tuple[str, ...]] = []
    for step in report.steps:
        step_size = "" if step.size_bytes is None else size(step.size_bytes)
        rows.append((step.name, step.what, seconds(step.seconds), "", "", step_size))
        if step.name == "cycle" and report.cycle is not None:
            rows.pop()
            for status in report.cycle.stages:
                stage, _state, what, *numbers = stage_row(status)
                rows.append((f"  {stage}", what, *numbers))
    print_table("What happened", ["stage", "what came of it", "#time", "#CPU", "#memory", "#size"], rows)


def _print_answer(answer: DeviceAnswer) -> None:
    console.print("")
    console.print(answer.question, style="bold", markup=False)
    for label, text, passes in (
        ("before", answer.before, answer.before_passes),
        ("after ", answer.after, answer.after_passes),
    ):
        mark = {True: "[green]✓[/]", False: "[red]✗[/]", None: " "}[passes]
        console.print(f"  {mark} [dim]{label}[/] ", end="")
        console.print(" ".join(text.split()), markup=False)
    console.print()


def _print_bytes(report: DemoReport) -> None:
    if not report.base_bytes:
        return
    share = report.adapter_bytes / report.base_bytes
    rows = [
        ("base model, once", size(report.base_bytes), size(report.first_sync_bytes)),
        (f"adapter ({share:.1%} of the base)", size(report.adapter_bytes), size(report.update_bytes)),
    ]
    print_table("Bytes that crossed the wire to the device", ["what", "#size", "#received"], rows)


def _print_cost(report: DemoReport) -> None:
    cost = f"{seconds(report.wall_seconds)} in all"
    if report.cpu_seconds is not None:
        cost += f", {report.cpu_seconds:.0f} CPU-seconds in all processes"
    if report.peak_memory_bytes:
        cost += f", largest process {size(report.peak_memory_bytes)}"
    console.print(cost + ", no token, no account, no GPU")
