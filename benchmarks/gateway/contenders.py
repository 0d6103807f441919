"""What is measured: the mock itself, the bare pass-through, everswarm, and LiteLLM; each started as a process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway.processes import SOURCES, cores, cpu_seconds, free_port, running

READY_SECONDS = 120.0
MODEL = "bench-model"  # what the mock serves
UPSTREAM_KEY = "upstream"  # the mock takes any

# Every feature on; quotas that are counted and never spent. The cache and the queue are on by default.
EVERSWARM_TOML = """
[engine]
enabled = false

[[endpoints]]
name = "first"
base_url = "{base_url}"
model = "bench-model"
roles = ["primary"]
api_key_env = "BENCH_UPSTREAM_KEY"
quota = {{ tokens_per_hour = 2_000_000_000, requests_per_minute = 10_000_000 }}

[[endpoints]]
name = "second"
base_url = "{base_url}"
model = "bench-model"
roles = ["primary"]
api_key_env = "BENCH_UPSTREAM_KEY"
quota = {{ tokens_per_hour = 2_000_000_000, requests_per_minute = 10_000_000 }}
"""


@dataclass(frozen=True)
class Contender:
    """One that answers chats at `port`. The mock itself has no `pid`: its CPU time is nobody's concern."""

    name: str
    port: int
    pid: int | None = None
    model: str = MODEL
    key: str = "none"
    start_cpu_seconds: float = 0.0  # until it first answered


class Mock:
    """The endpoint behind all contenders, and its counters."""

    def __init__(self, port: int) -> None:
        """Talk to the mock at `port`."""
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def counts(self) -> dict[str, int]:
        """Return `requests`, `streams` and `tokens` since its start."""
        counts: dict[str, int] = _fetch(f"http://127.0.0.1:{self.port}/counts")
        return counts

    @contextlib.contextmanager
    def paced(self, *, delay_seconds: float = 0.0, pace_seconds: float = 0.0) -> Iterator[None]:
        """Within this block, wait before each answer, and between the chunks of a stream."""
        self._set(delay_seconds, pace_seconds)
        try:
            yield
        finally:
            self._set(0.0, 0.0)

    def _set(self, delay_seconds: float, pace_seconds: float) -> None:
        _fetch(f"http://127.0.0.1:{self.port}/set/{delay_seconds * 1e6:.0f}/{pace_seconds * 1e6:.0f}", body=b"")


@contextlib.contextmanager
def mock_running(folder: Path) -> Iterator[Mock]:
    """Run the compiled mock of `folder` on the first core."""
    port = free_port()
    log = folder / "mock.log"
    with running([str(folder / "mock"), str(port)], core=cores()[0], folder=folder, log=log) as child:
        wait_until_answered(f"http://127.0.0.1:{port}/v1/models", child, log)
        yield Mock(port)


@contextlib.contextmanager
def bare_running(folder: Path, mock: Mock) -> Iterator[Contender]:
    """Run the bare pass-through."""
    port, log = free_port(), folder / "bare.log"
    command = [sys.executable, str(SOURCES / "bare.py"), str(port), mock.base_url]
    with running(command, core=cores()[1], folder=folder, log=log) as child:
        wait_until_answered(f"http://127.0.0.1:{port}/v1/models", child, log)
        yield Contender("bare", port, child.pid)


@contextlib.contextmanager
def everswarm_running(folder: Path, mock: Mock) -> Iterator[Contender]:
    """Run `everswarm serve --no-worker` on a home of its own in `folder`, and wait until all of it is up."""
    folder.mkdir()
    home, port, log = folder / "home", free_port(), folder / "serve.log"
    config = folder / "everswarm.toml"
    config.write_text(EVERSWARM_TOML.format(base_url=mock.base_url), encoding="utf-8")
    command = [sys.executable, "-m", "everswarm.cli.main", "serve", "--no-worker", "--port", str(port)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVERSWARM_")},
        "EVERSWARM_HOME": str(home),
        "EVERSWARM_CONFIG": str(config),
        "BENCH_UPSTREAM_KEY": UPSTREAM_KEY,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry),
    }
    with running(command, core=cores()[1], folder=folder, log=log, environment=environment) as child:
        health = f"http://127.0.0.1:{port}/api/health"
        wait_until_answered(health, child, log)
        start_cpu_seconds = cpu_seconds(child.pid)
        _wait_until(lambda: _is_up(_fetch(health)), "everswarm, with cycles and endpoints,", child, log)
        key = (home / "cli.key").read_text(encoding="utf-8").strip()
        yield Contender("everswarm", port, child.pid, "everswarm", key, start_cpu_seconds)


def _is_up(health: Mapping[str, Any]) -> bool:
    return bool(health["cycles"] != "starting" and health["models"] == "operational")


def wait_until_answered(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    """Return once `child` answers at `url`.

    Raises:
        SystemExit: it ended, or does not answer within two minutes; the end of `log` is in the message.
    """

    def answers() -> bool:
        try:
            _fetch(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    _wait_until(answers, url, child, log)


def _wait_until(holds: Callable[[], bool], what: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not holds():
        if child.poll() is not None or time.monotonic() > deadline:
            why = "ended" if child.poll() is not None else f"was not ready within {READY_SECONDS:.0f} s"
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise SystemExit(f"{what} {why}. Its log ends with:\n{said}")
        time.sleep(0.02)


def _fetch(url: str, *, body: bytes | None = None) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy on the way to ourselves
    with opener.open(url, data=body, timeout=10) as answer:
        return json.loads(answer.read())
