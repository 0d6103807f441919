"""The server of the demo: the one that runs on the home already, or one that we start and own."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from everswarm.cli.local import connect_home
from everswarm.client import EverswarmClient
from everswarm.errors import EverswarmError, UnavailableError
from everswarm.processes import Usage, reap_child, start_python_child
from everswarm.schemas.server import Health
from everswarm.settings import Settings

START_SECONDS = 60.0
READY_SECONDS = 600.0  # the first start fetches the model


@dataclass
class DemoServer:
    """A running server; `child` is None when it was there before us, and then it is not ours to stop."""

    client: EverswarmClient
    child: subprocess.Popen[str] | None

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.client.base_url

    def stop(self) -> Usage:
        """End it in order; return what it and its children cost."""
        if self.child is None:
            return Usage(0.0, 0)
        self.child.terminate()
        return reap_child(self.child, patience_seconds=30.0)


def start_or_join(settings: Settings) -> DemoServer:
    """Return a server on this home that answers."""
    running = _running(settings)
    if running is not None:
        return DemoServer(running, None)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_path = settings.home / "server.log"
    with log_path.open("a", encoding="utf-8") as log:
        child = start_python_child(
            ["-m", "everswarm.cli.main", "serve", "--home", str(settings.home), "--port", str(free_port(settings))],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        if _announced_pid(settings.home) == child.pid:
            client = connect_home(settings, timeout_seconds=120.0)
            with suppress(EverswarmError):
                client.health()
                return DemoServer(client, child)
        time.sleep(0.1)
    reap_child(child, patience_seconds=0.0)
    tail = " | ".join(log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:])
    raise UnavailableError(f"The server did not start. The last lines of {log_path}: {tail}")


def wait_operational(server: DemoServer, say: Callable[[str], None]) -> Health:
    """Wait until the model answers and cycles are ready; `say` hears what we wait for.

    Raises:
        UnavailableError: it takes too long; says what is missing.
    """
    deadline = time.monotonic() + READY_SECONDS
    while True:
        health = server.client.health()
        if health.models == "operational" and health.cycles == "ready":
            return health
        say("; ".join(f"{name}: {state}" for name, state in health.endpoints.items()))
        if time.monotonic() > deadline or (server.child is not None and server.child.poll() is not None):
            raise UnavailableError(f"The server is not ready: {'; '.join(health.problems) or 'unknown'}.")
        time.sleep(0.2)


def free_port(settings: Settings) -> int:
    """Return the configured port, or 0 (any free one) when something else uses it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError:
            return 0
    return settings.port


def _running(settings: Settings) -> EverswarmClient | None:
    with suppress(EverswarmError):
        client = connect_home(settings, timeout_seconds=120.0)
        client.health()
        client.cycles(limit=1)  # the key must be this home's, not of another server on the same port
        return client
    return None


def _announced_pid(home: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads((home / "server.json").read_text(encoding="utf-8"))["pid"])
    return None
