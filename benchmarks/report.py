"""The form of all results: a table on the screen, a JSON file in `results`, one page that shows the newest."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"


@dataclass(frozen=True)
class Row:
    """One figure. `must` and `reach` are limits; `value` is None when it was not measured, and `how` says why."""

    metric: str
    value: float | None
    unit: str
    must: float | None
    reach: float | None
    better: Literal["lower", "higher"]
    how: str

    @property
    def meets_must(self) -> bool | None:
        """Whether the figure is within its limit; None when either is missing."""
        if self.value is None or self.must is None:
            return None
        return self.value <= self.must if self.better == "lower" else self.value >= self.must


def save(name: str, rows: Sequence[Row]) -> Path:
    """Print the rows and write `results/<name>.json`; rows of other runs of the same benchmark are kept."""
    path = RESULTS / f"{name}.json"
    stored = {row["metric"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for row in rows:
        if row.value is not None or row.metric not in stored:
            stored[row.metric] = {**asdict(row), "meets_must": row.meets_must}
    result = {
        "name": name,
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain") else ""),
        "machine": machine(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": list(stored.values()),
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(name, rows)
    write_page()
    return path


def machine() -> dict[str, Any]:
    """Describe this machine as far as a figure depends on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "accelerator": None,
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def write_page() -> None:
    """Write `README.md`: the newest results as one table."""
    lines = [
        "# Benchmarks",
        "",
        "`make bench` runs all that need no accelerator; this page is generated from `results/`.",
        "Machines are shared and noisy: CPU time counts all processes of the thing measured.",
        "",
        "| benchmark | metric | value | must | reach | meets | how |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for row in result["rows"]:
            meets = {True: "yes", False: "**no**", None: ""}[row["meets_must"]]
            figures = [_figure(row[name], row["unit"]) for name in ("value", "must", "reach")]
            lines.append(f"| {result['name']} | {row['metric']} | {' | '.join(figures)} | {meets} | {row['how']} |")
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        where = result["machine"]
        lines += [
            "",
            f"`{result['name']}`: {result['when']}, commit {result['commit']}, {where['cpu']}, {where['cores']} cores, "
            f"{where['memory_gib']} GiB, load average {where['load_average']}.",
        ]
    (ROOT / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _figure(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:g} {unit}".strip()


def _print(name: str, rows: Sequence[Row]) -> None:
    table = Table(title=f"benchmark {name}", title_justify="left")
    for column in ("metric", "value", "must", "reach", "meets"):
        table.add_column(column)
    for row in rows:
        meets = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[row.meets_must]
        figures = [_figure(value, row.unit) for value in (row.value, row.must, row.reach)]
        table.add_row(row.metric, *figures, meets)
    Console().print(table)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
