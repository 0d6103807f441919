"""Batches over a real server with a scripted upstream: answered, found again, gone, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.upstream import FakeUpstream
from tests.flow.served_gateway import ServedGateway

from everswarm.client import EverswarmClient, batches
from everswarm.client.batches import answer_batch, begin_batch, delete_files, get_batch, wait_for_batch
from everswarm.errors import NotFoundError, StageFailedError, UnavailableError
from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.settings import EndpointSettings, Settings


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


@pytest.fixture(scope="module")
def server(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", timeout_seconds=30)
    running = ServedGateway(Settings(home=tmp_path_factory.mktemp("gateway") / "home", endpoints=[endpoint]))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: ServedGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[EverswarmClient]:
    """With a worker's key, which may use batches."""
    monkeypatch.setattr(batches, "FIRST_PAUSE_SECONDS", 0.02)
    key = create_key(server.app.state.database, scope=Scope.WORKER, label="worker").key
    with EverswarmClient(server.url, key) as made:
        yield made


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text(line("a") + line("b", temperature=9))
    return path


def line(name: str, **body: Any) -> str:
    asked = {"model": "primary", "messages": [{"role": "user", "content": name}], **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": asked}) + "\n"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def answer(client: EverswarmClient, requests: Path, batch: str | None = None) -> tuple[batches.Answers, list[str]]:
    begun: list[str] = []
    out = requests.with_name("answers.jsonl")
    answers = answer_batch(client, requests, out, batch=batch, on_batch=begun.append, on_wait=lambda _: None)
    return answers, begun


def test_answers_come_first_and_errors_behind_them(client: EverswarmClient, requests: Path) -> None:
    answers, begun = answer(client, requests)
    assert begun == [answers.batch.id]
    good, bad = lines_of(answers.path)
    assert good["custom_id"] == "a"
    assert good["response"]["body"]["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("b", 422)
    assert answers.batch.progress == "1 of 2 answered"


def test_batch_of_an_earlier_try_is_read_and_nothing_is_asked_twice(
    client: EverswarmClient, upstream: FakeUpstream, requests: Path
) -> None:
    batch = begin_batch(client, requests)
    wait_for_batch(client, batch.id, lambda _: None)
    before = len(upstream.requests)
    answers, begun = answer(client, requests, batch.id)
    assert (answers.batch.id, begun, len(upstream.requests)) == (batch.id, [], before)
    assert len(lines_of(answers.path)) == 2


@pytest.mark.parametrize("gone", ["batch_none", "its answers"])
def test_batch_that_is_gone_is_asked_anew(client: EverswarmClient, requests: Path, gone: str) -> None:
    if gone == "its answers":
        earlier = answer(client, requests)[0].batch
        delete_files(client, [*earlier.files, "file-none"])
        with pytest.raises(NotFoundError):
            client.request("GET", f"/v1/files/{earlier.output_file_id}")
        gone = earlier.id
    answers, begun = answer(client, requests, gone)
    assert begun == [answers.batch.id] != [gone]
    assert len(lines_of(answers.path)) == 2


def test_questions_that_the_server_cannot_read_are_refused_with_its_words(
    client: EverswarmClient, requests: Path
) -> None:
    requests.write_text("nonsense\n")
    with pytest.raises(
        StageFailedError, match=r"did not take the questions for the teacher: This line is not parseable"
    ):
        answer(client, requests)
    failed = begin_batch(client, requests)
    assert wait_for_batch(client, failed.id, lambda _: None).status == "failed"
    requests.write_text(line("a"))
    answers, begun = answer(client, requests, failed.id)  # of an earlier try
    assert begun == [answers.batch.id]


def test_who_waits_is_told_for_what(client: EverswarmClient, upstream: FakeUpstream, requests: Path) -> None:
    told: list[str] = []
    upstream.behaviour.status, upstream.behaviour.headers = 429, {"Retry-After": "1"}

    def listen(text: str) -> None:
        told.append(text)
        if "quota is spent" in text:
            upstream.behaviour.status, upstream.behaviour.headers = 200, {}

    batch = begin_batch(client, requests)
    assert wait_for_batch(client, batch.id, listen).status == "completed"
    assert any("of 2 answered" in text and "The quota is spent" in text for text in told)


def test_server_that_stays_away_is_given_up(
    client: EverswarmClient, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = begin_batch(client, requests)
    with EverswarmClient("http://127.0.0.1:9", client.key) as away:
        told: list[str] = []
        monkeypatch.setattr(batches, "AWAY_SECONDS", 0.05)
        with pytest.raises(UnavailableError, match="does not answer"):
            wait_for_batch(away, batch.id, told.append)
        assert told
        assert "does not answer" in told[0]
    assert get_batch(client, batch.id).id == batch.id
