"""Keeps the training worker of this machine running beside the server."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import threading
import time
from pathlib import Path

from everswarm.processes import start_python_child, stop_child

log = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


def training_is_installed() -> bool:
    """Say whether this machine can train."""
    return all(importlib.util.find_spec(name) for name in ("torch", "trl", "peft"))


class LocalWorker:
    """A worker process that is started again when it dies."""

    def __init__(self, *, server: str, key: str, home: Path) -> None:
        self.environment = {"EVERSWARM_SERVER": server, "EVERSWARM_KEY": key, "EVERSWARM_HOME": str(home)}
        self.log_path = home / "worker.log"
        self.child: subprocess.Popen[str] | None = None
        self.state = "starting"  # or running, or what is wrong
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="local-worker", daemon=True)

    def start(self) -> None:
        """Start it and return at once."""
        self._thread.start()

    def stop(self) -> None:
        """End it; the stage that it was at goes on with the next worker."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()  # first, so that it starts no new one behind our back
        if self.child is not None:
            stop_child(self.child)

    def _run_once(self) -> None:
        with self.log_path.open("a", encoding="utf-8") as output:
            self.child = start_python_child(
                ["-m", "everswarm.cli.main", "worker", "--local"],
                environment=self.environment,
                stdout=output,
                stderr=output,
            )
        self.state = "running"
        while self.child.poll() is None and not self._stopping.wait(0.2):
            pass
        self.state = f"starting again, since it ended with code {self.child.returncode}"

    def _supervise(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._run_once()
            except OSError as error:  # no disk for the log, no memory for a process: may mend
                self.state = f"could not be started ({error})"
                log.warning("The training worker %s; it is tried again.", self.state)
            if self._stopping.wait(pause_seconds):
                return
            lived_long = time.monotonic() - started > 2 * LONGEST_PAUSE_SECONDS
            pause_seconds = FIRST_PAUSE_SECONDS if lived_long else min(pause_seconds * 2, LONGEST_PAUSE_SECONDS)
