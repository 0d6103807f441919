"""The server that is measured: `everswarm serve` without a worker and without an engine, on a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.contenders import wait_until_answered
from benchmarks.gateway.processes import free_port, running

TOML = """
[engine]
enabled = false

[feedback]
records_per_hour = 1_000_000_000
"""


@dataclass(frozen=True)
class Served:
    """One run of the server."""

    home: Path
    port: int
    pid: int

    @property
    def database_file(self) -> Path:
        """Where its database is."""
        return self.home / "everswarm.sqlite"

    def commits(self) -> list[int]:
        """Return how many records each commit of the ingest had."""
        notes = self.home / "commits.txt"
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    def device_key(self, number: int) -> str:
        """Make a key for one device."""
        admin = (self.home / "cli.key").read_text(encoding="utf-8").strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/keys",
            data=json.dumps({"scope": "device", "label": f"device {number}"}).encode(),
            headers={"Authorization": f"Bearer {admin}", "Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy on the way to ourselves
        with opener.open(request, timeout=30) as answer:
            key: str = json.loads(answer.read())["key"]
            return key


@contextlib.contextmanager
def served(folder: Path, *, port: int | None = None) -> Iterator[Served]:
    """Run the server on the last core while the block lasts; `folder` may have its home already."""
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    config = folder / "everswarm.toml"
    config.write_text(TOML, encoding="utf-8")
    port = port or free_port()
    command = [sys.executable, "-m", "benchmarks.feedback.ingest_server", str(home / "commits.txt")]
    command += ["serve", "--no-worker", "--port", str(port)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVERSWARM_")},
        "EVERSWARM_HOME": str(home),
        "EVERSWARM_CONFIG": str(config),
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path),
    }
    log = folder / "serve.log"
    with running(command, core=max(os.sched_getaffinity(0)), folder=folder, log=log, environment=environment) as child:
        wait_until_answered(f"http://127.0.0.1:{port}/api/health", child, log)
        yield Served(home, port, child.pid)
