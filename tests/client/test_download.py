"""Downloads over a real socket: broken off, resumed, tampered with."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from everswarm.client import EverswarmClient
from everswarm.client.loopback import is_loopback
from everswarm.errors import DigestMismatchError, QuotaSpentError, UnavailableError
from everswarm.schemas.artifact import Artifact, ArtifactKind

DATA = bytes(range(256)) * 20_000  # 5 MB
SHA256 = hashlib.sha256(DATA).hexdigest()
ARTIFACT = Artifact(sha256=SHA256, size_bytes=len(DATA), kind=ArtifactKind.BASE_GGUF, name="base.gguf")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA with ranges; breaks off after `break_after` bytes as often as it is told."""

    breaks_left = 0
    tamper = False
    refuse = False
    ranges: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if type(self).refuse:
            self.send_response(429)
            self.send_header("Retry-After", "17")
            self.end_headers()
            self.wfile.write(b'{"detail": "too many downloads"}')
            self.close_connection = True
            return
        asked = self.headers.get("Range")
        type(self).ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = DATA[start:]
        if type(self).tamper:
            body = b"x" + body[1:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if type(self).breaks_left > 0:
            type(self).breaks_left -= 1
            body = body[: 2 << 20]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[EverswarmClient]:
    Handler.breaks_left, Handler.tamper, Handler.refuse, Handler.ranges = 0, False, False, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with EverswarmClient(f"http://127.0.0.1:{server.server_address[1]}") as client:
        yield client
    server.shutdown()
    server.server_close()


def test_a_broken_download_goes_on_where_it_stopped(client: EverswarmClient, tmp_path: Path) -> None:
    Handler.breaks_left = 1
    received = client.fetch_artifact(ARTIFACT, tmp_path / "base.gguf")
    assert (tmp_path / "base.gguf").read_bytes() == DATA
    assert received == len(DATA)
    assert Handler.ranges == [None, f"bytes={2 << 20}-"]


def test_what_is_here_is_not_downloaded_again(client: EverswarmClient, tmp_path: Path) -> None:
    (tmp_path / "base.gguf").write_bytes(DATA)
    assert client.fetch_artifact(ARTIFACT, tmp_path / "base.gguf") == 0
    assert Handler.ranges == []


def test_a_partial_file_of_an_earlier_process_is_continued(client: EverswarmClient, tmp_path: Path) -> None:
    (tmp_path / "base.gguf.part").write_bytes(DATA[:1000])
    assert client.fetch_artifact(ARTIFACT, tmp_path / "base.gguf") == len(DATA) - 1000


def test_wrong_bytes_are_refused_and_nothing_is_left(client: EverswarmClient, tmp_path: Path) -> None:
    Handler.tamper = True
    with pytest.raises(DigestMismatchError, match="was not used"):
        client.fetch_artifact(ARTIFACT, tmp_path / "base.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_keeps_breaking_says_what_is_kept(tmp_path: Path) -> None:
    gone = EverswarmClient("http://127.0.0.1:9")
    (tmp_path / "base.gguf.part").write_bytes(DATA[:1000])
    with pytest.raises(UnavailableError, match="1000 of 5120000 bytes are kept"):
        gone.fetch_artifact(ARTIFACT, tmp_path / "base.gguf")


def test_a_refusal_is_the_error_that_the_server_meant(client: EverswarmClient, tmp_path: Path) -> None:
    Handler.refuse = True
    with pytest.raises(QuotaSpentError, match=r"^too many downloads$") as refused:
        client.fetch_artifact(ARTIFACT, tmp_path / "base.gguf")
    assert refused.value.retry_after_seconds == 17


def test_no_proxy_stands_between_us_and_our_own_machine(
    client: EverswarmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with EverswarmClient(client.base_url) as again:
        assert again.fetch_artifact(ARTIFACT, tmp_path / "base.gguf") == len(DATA)


@pytest.mark.parametrize(
    ("place", "ours"),
    [
        ("localhost", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("http://[::1]:8000/v1", True),
        ("http://localhost:8000", True),
        ("0.0.0.0", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1@example.org", False),
        ("http://[", False),
    ],
)
def test_loopback_is_this_machine_alone(place: str, ours: bool) -> None:
    assert is_loopback(place) is ours


def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9 does not answer"):
        EverswarmClient("http://127.0.0.1:9").health()
