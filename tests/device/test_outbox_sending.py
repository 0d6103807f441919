from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.device_server import DeviceServer, _DeviceHandler
from tests.fakes.local_server import LocalServer

from everswarm.client import EverswarmClient
from everswarm.device import outbox
from everswarm.device.journal import open_journal
from everswarm.device.state import DeviceHome
from everswarm.device.sync import enroll, sync
from everswarm.errors import ForbiddenError, QuotaSpentError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.server import Scope
from everswarm.server.auth.service import create_key


class Upload(NamedTuple):
    encoding: str | None
    wire_bytes: int
    unpacked_bytes: int


class Answer(NamedTuple):
    status: int
    retry_after_seconds: int | None = None
    detail: str = "Not now."


@dataclass
class FeedbackServer(DeviceServer):
    """The device server with what a careful ingest adds: gzip, conflicts, refusals, and a hand on the plug."""

    not_unpacked: int = 0  # the status that packed bodies get; 0: they are unpacked
    refusals: list[Answer] = field(default_factory=list)  # of the next uploads; nothing of them is stored
    kept_first: set[str] = field(default_factory=set)  # ids that it has with another content
    uploads: list[Upload] = field(default_factory=list)
    when_stored: Callable[[], None] = lambda: None  # after the commit, before the answer

    def __enter__(self) -> FeedbackServer:
        handler = type("Handler", (_FeedbackHandler,), {"state": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self


class _FeedbackHandler(_DeviceHandler):
    state: FeedbackServer

    def do_POST(self) -> None:  # noqa: N802
        if self.path == "/api/training/feedback":
            wire, encoding = self.rfile.read(int(self.headers["Content-Length"])), self.headers["Content-Encoding"]
            body = gzip.decompress(wire) if encoding == "gzip" else wire
            self.state.uploads.append(Upload(encoding, len(wire), len(body)))
            if encoding and self.state.not_unpacked:
                self._problem(self.state.not_unpacked, "Plain JSON only.")
                return
            if self.state.refusals:
                self._refuse(self.state.refusals.pop(0))
                return
            self.rfile = io.BytesIO(body)
            self.headers.replace_header("Content-Length", str(len(body)))
        super().do_POST()

    def _refuse(self, answer: Answer) -> None:
        body = json.dumps({"detail": answer.detail}).encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        if answer.retry_after_seconds is not None:
            self.send_header("Retry-After", str(answer.retry_after_seconds))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, value: Any) -> None:
        if self.path == "/api/training/feedback" and status == 200:
            ids = list(self.state.feedback)
            kept = [id_ for id_ in ids if id_ in self.state.kept_first]
            value["conflicts"] = [{"index": ids.index(id_), "id": id_, "error": "other rating"} for id_ in kept]
            self.state.when_stored()
        super()._json(status, value)


@pytest.fixture
def server() -> Iterator[FeedbackServer]:
    with FeedbackServer() as running:
        yield running


@pytest.fixture
def send(home: Path) -> Callable[[], outbox.Sent]:
    """Empty the outbox as a sync does; the waits it makes are in `send.waits`, and take no time."""

    def send_all() -> outbox.Sent:
        place = DeviceHome(home)
        with EverswarmClient(place.load().server, place.load_key()) as client:
            return outbox.send(place.journal_path, place.load().device_id, client=client, wait=send_all.waits.append)

    send_all.waits = []
    return send_all


@pytest.fixture
def judge(home: Path) -> Callable[..., JudgedInteraction]:
    place = DeviceHome(home)
    device_id = place.load().device_id

    def judge_one(**said: object) -> JudgedInteraction:
        return outbox.judge(place.journal_path, device_id, **said)  # type: ignore[arg-type]

    return judge_one


Judge = Callable[..., JudgedInteraction]
Answered = Callable[..., str]


def counts(home: Path) -> tuple[int, int, int]:
    return tuple(outbox.count(DeviceHome(home).journal_path))  # type: ignore[return-value]


def test_an_answer_lost_on_the_way_does_not_store_twice(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    answered()
    judge(rating=4)
    server.lose_answers = 1
    with pytest.raises(UnavailableError, match="1 judgements wait"):
        sync(home)
    assert counts(home) == (1, 0, 0)
    assert sync(home).feedback_sent == 1
    assert len(server.feedback) == 1


def queue_many(home: Path, number: int, *, question: str = "?") -> None:
    place = DeviceHome(home)
    device_id = place.load().device_id
    with open_journal(place.journal_path) as connection:
        for _ in range(number):
            item = {
                "id": new_id(),
                "device_id": device_id,
                "timestamp": "2026-01-01T00:00:00Z",
                "messages": [{"role": "user", "content": question}],
                "rating": 3,
            }
            connection.execute(
                "INSERT INTO feedback (interaction_id, state, payload, changed_at) VALUES (?, 'queued', ?, '')",
                (item["id"], json.dumps(item)),
            )


def test_batches_hold_at_most_500(server: FeedbackServer, home: Path) -> None:
    queue_many(home, 1201)
    assert sync(home).feedback_sent == 1201
    assert server.batches == [500, 500, 201]


def test_batches_are_packed_and_measured_unpacked(server: FeedbackServer, home: Path) -> None:
    queue_many(home, 30, question="x" * 90_000)
    assert sync(home).feedback_sent == 30
    assert server.batches == [11, 11, 8]
    assert {upload.encoding for upload in server.uploads} == {"gzip"}
    assert max(upload.unpacked_bytes for upload in server.uploads) <= 1.01 * outbox.MAX_BATCH_BYTES
    assert all(upload.wire_bytes < upload.unpacked_bytes / 100 for upload in server.uploads)


@given(st.lists(st.integers(min_value=0, max_value=700_000), max_size=30))
def test_every_batch_fits_and_nothing_is_left_out(sizes: list[int]) -> None:
    waiting = [outbox.Waiting(str(number), "x" * size, True) for number, size in enumerate(sizes)]
    left = waiting
    while left:
        batch = outbox.first_batch(left)
        assert batch == left[: len(batch)]
        assert len(batch) == 1 or sum(len(item.payload) for item in batch) <= outbox.MAX_BATCH_BYTES
        left = left[len(batch) :]


def test_a_small_batch_goes_plain(server: FeedbackServer, home: Path, answered: Answered, judge: Judge) -> None:
    answered()
    judge(rating=5)
    sync(home)
    assert [upload.encoding for upload in server.uploads] == [None]


@pytest.mark.parametrize("status", [400, 415])
def test_a_server_that_cannot_unpack_is_asked_once_and_then_gets_plain_batches(
    status: int, server: FeedbackServer, home: Path
) -> None:
    server.not_unpacked = status
    queue_many(home, 1001)
    assert sync(home).feedback_sent == 1001
    assert [upload.encoding for upload in server.uploads] == ["gzip", None, None, None]


def test_a_server_that_wants_patience_gets_it(server: FeedbackServer, home: Path, send) -> None:
    server.refusals = [Answer(429, 20), Answer(429, 30)]
    queue_many(home, 600)
    assert send() == outbox.Sent(sent=600, rejected=0)
    assert send.waits == [20, 30]


def test_a_wait_too_long_is_put_into_words_and_nothing_is_lost(
    server: FeedbackServer, home: Path, answered: Answered, judge: Judge, send
) -> None:
    answered()
    judge(rating=2)
    server.refusals = [Answer(429, 50), Answer(429, 1790, "20,000 records an hour.")]
    with pytest.raises(QuotaSpentError, match=r"^20,000 records an hour. Sync again in 30 min.$") as refused:
        send()
    assert (send.waits, refused.value.retry_after_seconds) == ([50], 1790)
    assert counts(home) == (1, 0, 0)
    assert judge(comment="It never left, so more may be said.").rating == 2
    assert send().sent == 1


def test_waits_are_bounded_together(server: FeedbackServer, home: Path, send) -> None:
    server.refusals = [Answer(429, 25)] * 10
    queue_many(home, 1)
    with pytest.raises(QuotaSpentError, match="Sync again in 25 s"):
        send()
    assert send.waits == [25, 25]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(507, None, "The server's disk is full."), "cannot store anything now: The server's disk is full."),
        (Answer(503, 5, "The database is starting."), "The database is starting."),
    ],
)
def test_a_server_that_cannot_store_now_gets_it_with_the_next_sync(
    answer: Answer, words: str, server: FeedbackServer, home: Path
) -> None:
    queue_many(home, 700)
    server.refusals = [answer]
    with pytest.raises(UnavailableError, match=f"{words} This device is unchanged.*700 judgements wait"):
        sync(home)
    assert sync(home).feedback_sent == 700


def test_what_a_refused_key_held_up_can_still_be_changed(
    server: FeedbackServer, home: Path, answered: Answered, judge: Judge
) -> None:
    answered()
    judge(rating=2)
    server.refusals = [Answer(403, None, "Not this device's key.")]
    with pytest.raises(ForbiddenError):
        sync(home)
    assert judge(rating=3).rating == 3


def test_a_version_that_the_server_has_otherwise_is_turned_down_with_the_reason(
    server: FeedbackServer, home: Path, answered: Answered, judge: Judge
) -> None:
    known, unknown = answered(), answered("What is 1 + 1?")
    for interaction_id in (known, unknown):
        judge(interaction_id=interaction_id, rating=1)
    server.kept_first = {known}
    report = sync(home)
    assert (report.feedback_sent, report.feedback_rejected) == (1, 1)
    assert outbox.rejections(DeviceHome(home).journal_path) == [
        (known, "The server kept what it had first: other rating")
    ]


KILLED_SYNC = """
import os, signal, sys
from pathlib import Path
from everswarm.device import outbox
from everswarm.device.sync import sync
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] in ("_send_batch", "_settle"): setattr(outbox, sys.argv[2], die)
sync(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("moment", ["_send_batch", "the answer", "_settle"])
def test_a_power_cut_between_send_and_settle_loses_and_doubles_nothing(
    moment: str, server: FeedbackServer, home: Path
) -> None:
    queue_many(home, 600)
    command = [sys.executable, "-c", KILLED_SYNC, str(home), moment]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        if moment == "the answer":
            server.when_stored = process.kill
        printed = process.communicate()[1]
    assert process.returncode == -9, printed
    server.when_stored = lambda: None
    assert counts(home) == (600, 0, 0)
    assert sync(home).feedback_sent == 600
    assert server.batches == ([500, 100] if moment == "_send_batch" else [500, 500, 100])
    assert len(server.feedback) == 600
    assert counts(home) == (0, 600, 0)


def test_the_whole_server_takes_packed_batches_once(tmp_path: Path) -> None:
    server = LocalServer(tmp_path / "server")
    server.start()
    try:
        home = tmp_path / "phone"
        enroll(home, server.url, key=create_key(server.database, scope=Scope.DEVICE, label="phone").key, name="phone")
        queue_many(home, 600)
        journal = DeviceHome(home).journal_path
        before = journal.read_bytes()
        assert sync(home).feedback_sent == 600
        assert counts(home) == (0, 600, 0)
        for rest in home.glob("journal.sqlite-*"):
            rest.unlink()
        journal.write_bytes(before)  # the device was restored from an old backup
        report = sync(home)
        assert (report.feedback_sent, report.feedback_rejected) == (600, 0)
        with server.client() as client:
            assert len(client.request("GET", "/api/interactions", params={"limit": 500})) == 500
            assert client.request("GET", "/api/feedback/stats")["interactions"] == 600
    finally:
        server.close()


def test_an_item_too_large_for_the_server_does_not_sink_the_rest(
    server: DeviceServer, home: Path, answered: Answered, judge: Judge
) -> None:
    server.max_body_bytes = 20_000
    long, short = answered("x" * 30_000), answered()
    judge(interaction_id=long, rating=1)
    judge(interaction_id=short, rating=5)
    report = sync(home)
    assert (report.feedback_sent, report.feedback_rejected) == (1, 1)
    assert "the limit is 20000" in outbox.rejections(DeviceHome(home).journal_path)[0].reason
