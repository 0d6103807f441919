"""The loop: what `everswarm demo` costs, how fast the server starts, how small the update is, how well it learns.

`python -m benchmarks loop` takes about five minutes; with `--feedback FILE` it also trains on 400 real examples and
compares with plain TRL SFT on the same ones, which takes about half an hour of CPU time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Row, save
from everswarm.client import EverswarmClient
from everswarm.errors import EverswarmError
from everswarm.processes import reap_child, start_python_child
from everswarm.settings import load_settings

TRAIN_EXAMPLES = 400
LEARNING = ("bits per byte, candidate / plain TRL SFT", "general text, candidate / base")
IDLE_SECONDS = 5.0  # after which the resident memory is read


def run(feedback: Path | None) -> None:
    """Measure and save."""
    with tempfile.TemporaryDirectory(prefix="everswarm-bench-") as folder:
        rows = [*demo_rows(run_demo(Path(folder) / "demo")), *server_rows(Path(folder) / "idle")]
        rows += learning_rows(Path(folder) / "real", feedback)
    save("loop", rows)


def demo_rows(report: dict[str, Any]) -> list[Row]:
    """Return the figures of a finished demo with models cached."""
    how = "everswarm demo --no-serve on an empty home, models cached, all processes"
    share = report["adapter_bytes"] / report["base_bytes"] * 100
    return [
        Row("demo, CPU time", round(report["cpu_seconds"]), "CPU-s", 420, 240, "lower", how),
        Row("demo, wall time", round(report["wall_seconds"]), "s", 300, None, "lower", how),
        Row("demo, largest process", round(report["peak_memory_bytes"] / 1e9, 2), "GB", 3.0, None, "lower", how),
        Row("seed adapter / base", round(share, 2), "%", 2.0, None, "lower", "bytes of the two GGUF files"),
    ]


def run_demo(home: Path, *arguments: str) -> dict[str, Any]:
    """Return the demo's report."""
    command = [
        sys.executable,
        "-m",
        "everswarm.cli.main",
        "demo",
        "--no-serve",
        "--json",
        "--home",
        str(home),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the demo failed: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def server_rows(home: Path) -> list[Row]:
    """Start a bare server; read its CPU time when it first answers and its memory when nothing happens."""
    cpu_seconds, idle_bytes = start_server(home)
    how = "everswarm serve --no-worker, engine off; /proc of the process"
    return [
        Row("server listens after", cpu_seconds, "CPU-s", 3.0, None, "lower", how + " at the first answer"),
        Row("server idle memory", round(idle_bytes / 1e6), "MB", 160, None, "lower", how + ", resident, cycles ready"),
    ]


def start_server(home: Path) -> tuple[float, int]:
    """Return (CPU seconds until the server answers, resident bytes when idle)."""
    child = start_python_child(
        ["-m", "everswarm.cli.main", "serve", "--no-worker", "--port", "0", "--home", str(home)],
        environment={"EVERSWARM_ENGINE__ENABLED": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        client = _wait_for_answer(home)
        ticks = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1].split()[11:13]
        cpu_seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        while client.health().cycles == "starting":
            time.sleep(0.1)
        time.sleep(IDLE_SECONDS)
        pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
        return round(cpu_seconds, 2), pages * os.sysconf("SC_PAGE_SIZE")
    finally:
        child.terminate()
        reap_child(child, patience_seconds=15.0)


def learning_rows(home: Path, feedback: Path | None) -> list[Row]:
    """Learn from a real file and compare with plain SFT on the same examples and the same held-out questions."""
    if feedback is None:
        why = "not measured in this run: needs --feedback FILE and half an hour of CPU"
        return [
            Row(name, None, "x", must, None, "lower", why) for name, must in zip(LEARNING, (1.02, 1.01), strict=True)
        ]
    report = run_demo(home, "--feedback", str(feedback), "--train-examples", str(TRAIN_EXAMPLES))
    return learning_rows_of(report, feedback)


def learning_rows_of(report: dict[str, Any], feedback: Path) -> list[Row]:
    """Return the figures of a finished demo on real feedback."""
    from benchmarks.compare import held_out

    found = held_out(report, feedback)
    how = f"{feedback.name}, {TRAIN_EXAMPLES} examples, one epoch, {found['test_examples']} held-out questions, float32"

    def row(metric: str, suite: str, against: str, must: float) -> Row:
        ours, theirs = found[f"candidate_{suite}"], found[f"{against}_{suite}"]
        texts = f"; base {found[f'base_{suite}']:.4f}, SFT {found[f'sft_{suite}']:.4f}, candidate {ours:.4f}"
        return Row(metric, round(ours / theirs, 4), "x", must, None, "lower", how + texts)

    rows = [row(LEARNING[0], "test", "sft", 1.02), row(LEARNING[1], "general", "base", 1.01)]
    if "base_instructions" in found:
        rows.append(row("real instructions, candidate / base", "instructions", "base", 1.01))
    cost = found["candidate_cpu_seconds"] / found["sft_cpu_seconds"]
    rows.append(Row("label + distill CPU / plain TRL SFT training", round(cost, 2), "x", None, None, "lower", how))
    return rows


def _wait_for_answer(home: Path) -> EverswarmClient:
    deadline = time.monotonic() + 60
    settings = load_settings(home=home)
    from everswarm.cli.local import connect

    while time.monotonic() < deadline:
        try:
            client = connect(settings)
            client.health()
            return client
        except EverswarmError:
            time.sleep(0.05)
    raise SystemExit("the server did not answer within 60 s")
