"""All rows of the benchmark `feedback`: durable ingest, then curation.

`python -m benchmarks feedback` takes about 12 minutes; `--quick` takes two and keeps no result. Linux, two cores.
"""

from __future__ import annotations

from rich.console import Console

from benchmarks.feedback import curation, ingest
from benchmarks.report import save


def run(*, quick: bool = False) -> None:
    """Measure, show, and save unless `quick`."""
    console = Console()
    with console.status("feedback") as status:
        rows = [*ingest.rows(quick=quick, tell=status.update), *curation.rows(quick=quick, tell=status.update)]
    if not quick:
        save("feedback", rows)
        return
    for row in rows:
        if row.value is not None:
            console.print(f"[bold]{row.metric}: {row.value:g} {row.unit}[/]  {row.how}", highlight=False)
