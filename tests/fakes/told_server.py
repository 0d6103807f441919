"""A server that says of itself what it is told: its health, and its endpoints to those who have its key."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from everswarm import __version__
from everswarm.cli.local import announce, write_private
from everswarm.schemas.gateway import QuotaView
from everswarm.settings import WEB_ROLES, Settings


class ToldServer:
    """Runs on `home` within a `with`; `views` are its endpoints."""

    def __init__(self, home: Path, *views: dict[str, Any], key: str = "esw_good", **health: Any) -> None:
        states = {view["endpoint"]: view["state"] for view in views}
        problems = [f"endpoint {name}: {state}" for name, state in states.items() if state != "operational"]
        told: dict[str, Any] = {
            "status": "degraded" if problems else "healthy",
            "models": "operational",
            "cycles": "ready",
            "version": __version__,
            "endpoints": states,
            "problems": problems,
        }
        self.answers = {"/api/health": {**told, **health}, "/api/quotas": list(views)}
        told_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_open = self.path == "/api/health" or self.headers["Authorization"] == "Bearer esw_good"
                body = json.dumps(told_server.answers[self.path] if is_open else {"detail": "no such key"}).encode()
                self.send_response(200 if is_open else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        announce(Settings(home=home), url=f"http://127.0.0.1:{self.http.server_port}")
        write_private(home / "cli.key", key)

    def __enter__(self) -> None:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __exit__(self, *_error: object) -> None:
        self.http.shutdown()
        self.http.server_close()


def view(name: str = "up", **said: Any) -> dict[str, Any]:
    """What a server says of one endpoint."""
    shown = QuotaView(
        endpoint=name,
        model="org/model",
        roles=list(WEB_ROLES),
        state="operational",
        limits=[],
        closed_until=None,
        closed_reason=None,
        latency_seconds=None,
        running=0,
    )
    return shown.model_copy(update=said).model_dump(mode="json")
