"""The real server over HTTP in a thread, which can stop and start again on the same home."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import httpx
import openai
import uvicorn

from everswarm.schemas.server import Scope
from everswarm.server import app as app_module
from everswarm.server.auth import create_key
from everswarm.settings import Settings

PATIENCE_SECONDS = 60.0
ASK = [{"role": "user", "content": "capital of France?"}]

T = TypeVar("T")


def until(condition: Callable[[], T], *, what: str = "it", seconds: float = PATIENCE_SECONDS) -> T:
    """Return what `condition` gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)
    return found


class ServedGateway:
    """One server on one home. The key stays the same over a restart; the port does not."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = ""
        self.key = ""
        self.app: Any = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen. The cycles are not launched: they have tests of their own."""
        self.app = app_module.create_app(self.settings)
        config = uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning")
        self._server = server = uvicorn.Server(config)
        self._thread = thread = threading.Thread(target=server.run, daemon=True)
        with patch.object(app_module, "LISTEN_FIRST_SECONDS", 3600):
            thread.start()
            until(lambda: server.started or not thread.is_alive(), what="the start of the server")
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        if not self.key:
            self.key = create_key(self.app.state.database, scope=Scope.ADMIN, label="ann").key

    def stop(self) -> None:
        """Go as at SIGTERM."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(PATIENCE_SECONDS)
            self._server = None

    def client(self, **options: Any) -> openai.OpenAI:
        """Return the official client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60, **options)

    def http(self, **options: Any) -> httpx.Client:
        """Return a client that hides nothing."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, **options)

    def quotas(self) -> dict[str, dict[str, Any]]:
        """Return `GET /api/quotas` by endpoint."""
        with self.http() as http:
            return {view["endpoint"]: view for view in http.get("/api/quotas").raise_for_status().json()}

    def held(self) -> int:
        """Return all that is reserved now."""
        return sum(limit["held"] for view in self.quotas().values() for limit in view["limits"])
