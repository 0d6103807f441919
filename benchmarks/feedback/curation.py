"""Curation: what a dataset of a million judged interactions costs in time and memory, and how that grows.

`rows(quick=…)` measures. Each run is a process of its own with two beside it that read; CPU and memory are those of
all of them.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.feedback.curation_records import write_records
from benchmarks.report import Row

PROCESSES = 2
SAMPLE_SECONDS = 0.2
STEPS_SHOWN = 5


@dataclass(frozen=True)
class Plan:
    """How many records each run has."""

    few: int = 100_000
    many: int = 1_000_000


QUICK = Plan(few=2_000, many=20_000)


class Run(NamedTuple):
    """What one curation cost, and what came of it."""

    records: int
    line_bytes: float  # on average
    wall_seconds: float
    cpu_seconds: float  # of all its processes, from start to end
    peak_mb: float  # the most that all its processes held together
    kept: int
    steps: dict[str, float]  # seconds by the clock


def rows(*, quick: bool = False, tell: Callable[[str], None] = lambda _text: None) -> list[Row]:
    """Measure, and return the rows of the report.

    Args:
        quick: a short look.
        tell: is told what goes on.
    """
    plan = QUICK if quick else Plan()
    few, many = (measure(records, tell=tell) for records in (plan.few, plan.many))
    return rows_of(few, many)


def measure(records: int, *, processes: int = PROCESSES, tell: Callable[[str], None] = lambda _text: None) -> Run:
    """Make up so many records and curate them once.

    Raises:
        SystemExit: the curation failed; its words are on the screen.
    """
    with tempfile.TemporaryDirectory(prefix="everswarm-bench-") as folder:
        lines, out = Path(folder) / "snapshot.jsonl", Path(folder) / "dataset"
        out.mkdir()
        tell(f"curation: writing {records:,} interactions")
        write_records(lines, records)
        tell(f"curation: {records:,} interactions")
        return _run(lines, out, records, processes)


def _run(lines: Path, out: Path, records: int, processes: int) -> Run:
    command = [sys.executable, "-m", "benchmarks.feedback.curation_run", str(lines), str(out), str(processes)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}
    cpu_before = _children_cpu_seconds()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        peak = _PeakMemory(child.pid)
        told, _ = child.communicate()
        peak_mb = peak.stop()
    if child.returncode:
        raise SystemExit(f"the curation ended with code {child.returncode}; its words are above")
    said = json.loads(told)
    return Run(
        records=records,
        line_bytes=lines.stat().st_size / records,
        wall_seconds=said["wall_seconds"],
        cpu_seconds=_children_cpu_seconds() - cpu_before,
        peak_mb=peak_mb,
        kept=said["kept"],
        steps=said["steps"],
    )


class _PeakMemory:
    """Adds up the resident memory of a process and its descendants, again and again.

    Pages that they share count in each.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._peak_bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the most that there was, in MB."""
        self._over.set()
        self._thread.join()
        return self._peak_bytes / 1e6

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self._peak_bytes = max(self._peak_bytes, _resident_bytes(self._pid))


def _resident_bytes(pid: int) -> int:
    total = 0
    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in members:
        try:
            total += int(member.memory_info().rss)
        except psutil.NoSuchProcess:  # it just ended
            continue
    return total


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows_of(few: Run, many: Run) -> list[Row]:
    """Return the rows of the report; limits are those of a million records, whatever was measured."""
    steps = sorted(many.steps.items(), key=lambda step: -step[1])[:STEPS_SHOWN]
    how = (
        f"made-up interactions of {many.line_bytes:,.0f} bytes, {PROCESSES} processes; {many.cpu_seconds:.0f} CPU "
        f"seconds; {many.kept:,} examples kept; " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in steps)
    )
    memory = "the most resident memory of all its processes together, pages that they share counted in each"
    growth = (
        f"CPU seconds of {many.records:,} records over those of {few.records:,} ({few.cpu_seconds:.1f}); by the clock "
        f"{many.wall_seconds / few.wall_seconds:.1f}x"
    )
    wall, peak = round(many.wall_seconds, 1), round(many.peak_mb)
    what = f"curate {many.records:,} interactions of 1 KB"
    return [
        Row(f"{what}: wall on 2 cores", wall, "s", 480.0, 240.0, "lower", how),
        Row(f"{what}: peak memory", peak, "MB", 4096.0, 2048.0, "lower", memory),
        Row(
            f"curation growth, {few.records:,} to {many.records:,}",
            round(many.cpu_seconds / few.cpu_seconds, 2),
            "x",
            11.0,
            10.0,
            "lower",
            growth,
        ),
    ]
