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
IDLE_SECONDS = 5.0  # after which the resident memory is read


def run(feedback: Path | None) -> None:
    """Measure and save."""
    with tempfile.TemporaryDirectory(prefix="everswarm-bench-") as folder:
        rows = [*demo_rows(Path(folder) / "demo"), *server_rows(Path(folder) / "idle")]
        rows += learning_rows(Path(folder) / "real", feedback)
    save("loop", rows)


def demo_rows(home: Path) -> list[Row]:
    """Run the demo with models cached, in processes of its own."""
    report = run_demo(home)
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
    names = ("bits per byte, candidate / plain TRL SFT", "general text, candidate / base")
    if feedback is None:
        why = "not measured in this run: needs --feedback FILE and half an hour of CPU"
        return [Row(name, None, "x", must, None, "lower", why) for name, must in zip(names, (1.02, 1.01), strict=True)]
    report = run_demo(home, "--feedback", str(feedback), "--train-examples", str(TRAIN_EXAMPLES))
    from benchmarks.compare import held_out

    scores = held_out(report)
    how = (
        f"{feedback.name}, {TRAIN_EXAMPLES} examples, one epoch, {scores['test_examples']} held-out questions, float32"
    )
    ratio, general = scores["candidate"] / scores["sft"], scores["candidate_general"] / scores["base_general"]
    texts = f"; base {scores['base']:.4f}, SFT {scores['sft']:.4f}, candidate {scores['candidate']:.4f}"
    return [
        Row(names[0], round(ratio, 4), "x", 1.02, 1.0, "lower", how + texts),
        Row(names[1], round(general, 4), "x", 1.01, None, "lower", how + "; the shipped suite of general questions"),
    ]


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
