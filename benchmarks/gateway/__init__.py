"""The gateway: what a request costs beyond the model, beside a bare pass-through and LiteLLM.

`python -m benchmarks gateway` takes about five minutes; `--quick` takes one and keeps no result; `--litellm` adds the
peer. Mock endpoint and load generator (C) share the first core; each gateway runs on the second, one worker, and all
take turns, round after round. Needs Linux, a C compiler and two cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.gateway import litellm as peer
from benchmarks.gateway.processes import compile_sources, why_not
from benchmarks.gateway.rounds import QUICK, Plan, measure
from benchmarks.gateway.rows import rows_of
from benchmarks.report import save


def run(*, quick: bool = False, with_litellm: bool = False, litellm: Path | None = None) -> None:
    """Measure, show, and save unless `quick`.

    Args:
        quick: two short rounds, for a look.
        with_litellm: measure the peer too.
        litellm: its virtual environment; made under `var` where None.

    Raises:
        SystemExit: the machine lacks something; says what.
    """
    if reason := why_not():
        raise SystemExit(reason)
    environment = peer.prepare(litellm) if with_litellm else None
    plan = QUICK if quick else Plan()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="everswarm-bench-") as folder:
        compile_sources(Path(folder))
        with console.status("compiled") as status:
            measured = measure(
                Path(folder), plan, litellm=environment, tell=lambda text: status.update(f"gateway: {text}")
            )
    rows = rows_of(measured, plan)
    if not quick:
        save("gateway", rows)
        return
    for row in rows:
        if row.value is not None:
            console.print(f"[bold]{row.metric}: {row.value:g} {row.unit}[/]  {row.how}", highlight=False)
