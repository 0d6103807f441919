"""A server that a test stops and starts, and lines for a batch."""

from __future__ import annotations

import json
import threading
import time

import openai
import uvicorn

from everswarm.schemas.server import Scope
from everswarm.server.app import create_app
from everswarm.server.auth import create_key
from everswarm.settings import Settings


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)
    return found


def request_line(custom_id: str, **body) -> dict:
    asked = {"model": "everswarm", "messages": [{"role": "user", "content": f"question {custom_id}"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def json_lines(*lines) -> bytes:
    return b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)


class Serving:
    """One running server; `stop` ends it as a signal would."""

    def __init__(self, settings: Settings) -> None:
        self.app = create_app(settings)
        self._server = uvicorn.Server(uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"

    def key(self, scope: Scope = Scope.USER, label: str = "ann") -> str:
        return create_key(self.app.state.database, scope=scope, label=label).key

    def client(self, key: str | None = None) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key or self.key(), max_retries=0)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server does not stop"
