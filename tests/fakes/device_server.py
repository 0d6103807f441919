"""A real HTTP server on loopback that speaks the device's part of our protocol, and can be made to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError

from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.sync import Device, DeviceEnrolment, MobileModel, TrainingFeedback

KEY = "esw_a-key-for-tests"
MOMENT = "2026-01-02T03:04:05Z"


@dataclass
class DeviceServer:
    """What the server has, what it was sent, and how it is to fail."""

    files: dict[str, bytes] = field(default_factory=dict)
    latest: dict[str, MobileModel] = field(default_factory=dict)
    devices: dict[str, DeviceEnrolment] = field(default_factory=dict)
    feedback: dict[str, dict[str, Any]] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)  # items of each
    ranges: list[str | None] = field(default_factory=list)  # of each download
    cuts: list[int] = field(default_factory=list)  # the next downloads break off after so many bytes
    tampered: set[str] = field(default_factory=set)  # digests whose bytes are served wrong
    lose_answers: int = 0  # so many batches are stored and then the line breaks
    max_body_bytes: int = 2 * 1024 * 1024
    http: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self.http
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> DeviceServer:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone."""
        if self.http:
            self.http.shutdown()
            self.http.server_close()
            self.http = None

    def add_file(self, content: bytes, *, kind: ArtifactKind, name: str) -> Artifact:
        """Have a file."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.files[sha256] = content
        return Artifact(sha256=sha256, size_bytes=len(content), kind=kind, name=name)

    def publish(self, version: str, *, base: bytes, adapter: bytes | None, role: str = "ultralight") -> MobileModel:
        """Offer a release to every device of `role`."""
        base_file = self.add_file(base, kind=ArtifactKind.BASE_GGUF, name="base.gguf")
        adapter_file = (
            self.add_file(adapter, kind=ArtifactKind.ADAPTER_GGUF, name=f"adapter-{version}.gguf") if adapter else None
        )
        model = MobileModel(
            version=version,
            url=f"/api/artifacts/{base_file.sha256}",
            size_mb=round(len(base) / 1e6, 3),
            quantization="Q4_K_M",
            sha256=base_file.sha256,
            role=role,
            model="org/tiny",
            release_id=f"release-{version}",
            base=base_file,
            adapter=adapter_file,
            adapter_url=f"/api/artifacts/{adapter_file.sha256}" if adapter_file else None,
        )
        self.latest[f"tiny_{role}"] = model
        return model


def _handler_of(server: DeviceServer) -> type[BaseHTTPRequestHandler]:
    class Handler(_DeviceHandler):
        state = server

    return Handler


class _DeviceHandler(BaseHTTPRequestHandler):
    state: DeviceServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._problem(401, "This key is not known.")
        elif url.path == "/api/models/mobile/latest":
            assert parse_qs(url.query)["device_id"][0] in self.state.devices
            self._json(200, {slug: model.model_dump(mode="json") for slug, model in self.state.latest.items()})
        elif url.path.startswith("/api/artifacts/"):
            self._file(url.path.rpartition("/")[2])
        else:
            self._problem(404, f"{url.path} is not here.")

    def do_POST(self) -> None:
        size_bytes = int(self.headers["Content-Length"])
        body = self.rfile.read(size_bytes)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self._problem(401, "This key is not known.")
        elif size_bytes > self.state.max_body_bytes:
            self._problem(413, f"The body has {size_bytes} bytes; the limit is {self.state.max_body_bytes}.")
        elif self.path == "/api/devices":
            enrolment = DeviceEnrolment.model_validate_json(body)
            self.state.devices[enrolment.device_id] = enrolment
            device = Device(**enrolment.model_dump(), enrolled_at=MOMENT, last_seen_at=MOMENT)
            self._json(200, device.model_dump(mode="json"))
        elif self.path == "/api/training/feedback":
            self._take_feedback(TrainingFeedback.model_validate_json(body))
        else:
            self._problem(404, f"{self.path} is not here.")

    def _take_feedback(self, batch: TrainingFeedback) -> None:
        self.state.batches.append(len(batch.interactions))
        rejected, stored = [], 0
        for index, item in enumerate(batch.interactions):
            try:
                judged = JudgedInteraction.model_validate(item)
            except ValidationError as error:
                rejected.append({"index": index, "id": item.get("id"), "error": error.errors()[0]["msg"]})
                continue
            stored += judged.id not in self.state.feedback
            self.state.feedback.setdefault(judged.id, item)
        if self.state.lose_answers:
            self.state.lose_answers -= 1
            self.close_connection = True
            return
        kept = len(batch.interactions) - len(rejected)
        answer = {"status": "accepted", "data_id": "d1", "stored": stored, "duplicates": kept - stored}
        self._json(200, {**answer, "rejected": rejected})

    def _file(self, sha256: str) -> None:
        content = self.state.files.get(sha256)
        if content is None:
            self._problem(404, f"{sha256} is not here.")
            return
        if sha256 in self.state.tampered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = self.headers.get("Range")
        self.state.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.state.cuts.pop(0) if self.state.cuts else None
        self.wfile.write(content[start:] if cut is None else content[start : start + cut])
        self.close_connection = cut is not None

    def _json(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _problem(self, status: int, detail: str) -> None:
        self._json(status, {"type": "about:blank", "title": "No", "status": status, "detail": detail})

    def log_message(self, *_: object) -> None:
        """Say nothing."""
