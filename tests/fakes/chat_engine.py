"""An engine with the interface of `EmbeddedEngine` that streams canned answers over real HTTP."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeEngine:
    """Says whether the adapter counts; refuses conversations beyond its context, as llama.cpp does."""

    def __init__(self, base: Path, adapter: Path | None, model: str, log_path: Path) -> None:
        self.base, self.adapter, self.model, self.log_path = base, adapter, model, log_path
        self.requests: list[dict[str, Any]] = []
        self.context_characters = 1000
        self.break_off = False
        self.stopped = False
        self.http: ThreadingHTTPServer | None = None

    @property
    def base_url(self) -> str:
        assert self.http
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def start(self) -> None:
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                engine.requests.append(body)
                if sum(len(message["content"]) for message in body["messages"]) > engine.context_characters:
                    self._refuse()
                else:
                    self._stream(body)

            def _refuse(self) -> None:
                text = json.dumps({"error": {"code": 400, "message": "request exceeds the context"}}).encode()
                self.send_response(400)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _stream(self, body: dict[str, Any]) -> None:
                adapted = any(entry["scale"] for entry in body.get("lora", []))
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for piece in ("3000 ", "m", "." if adapted else "!"):
                    self._event({"choices": [{"delta": {"content": piece}}]})
                if engine.break_off:
                    self._event({"error": {"message": "out of memory"}})
                    return
                self._event({"choices": [], "usage": {"completion_tokens": 7}})
                self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, value: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def wait_ready(self, timeout_seconds: float) -> None:
        assert self.http

    def stop(self) -> None:
        self.stopped = True
        if self.http:
            self.http.shutdown()
            self.http.server_close()
