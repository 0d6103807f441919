"""A quota that is spent: people wait and are told how long, batches park, a restart loses nothing.

The endpoint enforces its quota itself, in every test here: one refusal by it is a failure.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream, TokenQuota
from tests.flow.served_gateway import ServedGateway, until

from everswarm.server.gateway import limits
from everswarm.settings import EndpointSettings, QuotaSettings

WINDOW_SECONDS = 5.0  # of a limit "per minute", here
TOKENS = 400
ANSWER = " ".join(["word"] * 60)  # 60 tokens, as the fake counts
MOST = 80  # max_tokens
SLACK_SECONDS = 2.0  # of a busy machine
WAITING = re.compile(r": waiting for quota, about (\d+) s")


@pytest.fixture(autouse=True)
def short_minutes(monkeypatch):
    monkeypatch.setitem(limits.WINDOW_SECONDS, "minute", WINDOW_SECONDS)


@pytest.fixture
def upstream():
    with FakeUpstream(answer=ANSWER, quota=TokenQuota(TOKENS, window_seconds=WINDOW_SECONDS)) as running:
        yield running
        assert running.quota is not None
        assert running.quota.refused == 0
        assert running.quota.total_granted > 0


@pytest.fixture
def server(serve, upstream):
    quota = QuotaSettings(tokens_per_minute=TOKENS)
    return serve(EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", quota=quota))


def ask(text: str, **options) -> dict:
    return {"model": "primary", "max_tokens": MOST, "messages": [{"role": "user", "content": text}], **options}


def status(server: ServedGateway, *, wait_seconds: float = 0) -> tuple[int, int]:
    """Return how one request that does not wait ends: its status, and Retry-After in seconds."""
    with server.http() as http:
        headers = {"X-Everswarm-Wait-Seconds": str(wait_seconds)}
        answer = http.post("/v1/chat/completions", json=ask("now"), headers=headers)
    return answer.status_code, int(answer.headers.get("Retry-After", 0))


def spend(server: ServedGateway) -> int:
    """Ask until the quota is spent; return what the refusal says of when to ask again."""
    while True:
        code, retry_after_seconds = status(server)
        if code != 200:
            assert code == 429
            return retry_after_seconds


class Waiting(threading.Thread):
    """A person who waits for the answer to a stream, and notes what the server says meanwhile."""

    def __init__(self, server: ServedGateway) -> None:
        super().__init__()
        self.told: list[tuple[float, int]] = []  # moment, seconds that it will take
        self.first_piece_at = 0.0
        self.text = ""
        self.ended = ""
        self._server = server
        self.start()

    def run(self) -> None:
        with (
            self._server.http() as http,
            http.stream("POST", "/v1/chat/completions", json=ask("later", stream=True)) as answer,
        ):
            for line in answer.iter_lines():
                self._take(line)

    def _take(self, line: str) -> None:
        if found := WAITING.match(line):
            self.told.append((time.monotonic(), int(found[1])))
        elif line == "data: [DONE]":
            self.ended = "done"
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            self.ended = str(event.get("error", ""))
            self.first_piece_at = self.first_piece_at or time.monotonic()
            self.text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


def test_person_waits_for_a_spent_quota_and_what_is_said_of_the_wait_is_true(server):
    retry_after_seconds = spend(server)
    refused_at = time.monotonic()
    waiting = Waiting(server)
    assert 1 <= retry_after_seconds <= WINDOW_SECONDS + 1
    time.sleep(max(0.0, refused_at + retry_after_seconds - time.monotonic()))
    assert status(server, wait_seconds=0)[0] == 200, "Retry-After was too soon"
    waiting.join()
    assert (waiting.text, waiting.ended) == (ANSWER, "done")
    assert waiting.told, "nothing was said of the wait"
    for moment, eta_seconds in waiting.told:
        assert waiting.first_piece_at <= moment + eta_seconds + SLACK_SECONDS
    assert server.held() == 0


def test_person_who_may_not_wait_so_long_is_refused_at_once_and_the_others_are_not_held_up(server):
    spend(server)
    began = time.monotonic()
    code, retry_after_seconds = status(server, wait_seconds=1)
    assert code == 429
    assert retry_after_seconds >= 2
    assert time.monotonic() - began < 1, "what cannot come in time is said at once"
    assert server.app.state.gateway.waiting() == dict.fromkeys(server.app.state.gateway.waiting(), 0)
    assert server.held() == 0


def test_many_who_wait_are_all_served_and_the_endpoint_is_never_asked_for_more_than_it_grants(server, upstream):
    with ThreadPoolExecutor(12) as pool:
        codes = list(pool.map(lambda _: status(server, wait_seconds=60)[0], range(12)))
    assert codes == [200] * 12
    assert len(upstream.requests) == 12
    assert server.held() == 0


def test_batch_parks_and_is_done_after_the_refill_over_a_restart(server, serve, upstream):
    lines = [
        {"custom_id": f"item-{n}", "method": "POST", "url": "/v1/chat/completions", "body": ask(f"item {n}")}
        for n in range(10)
    ]
    client = server.client()
    text = "\n".join(json.dumps(line) for line in lines)
    given = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h")
    gateway = server.app.state.gateway
    until(lambda: client.batches.retrieve(batch.id).everswarm["waiting_for"], what="the parking of the batch")
    assert status(server)[0] == 200, "a part of the quota is kept for people"
    waiting = Waiting(server)
    until(lambda: gateway.waiting()["interactive"] > 0 or waiting.ended, what="the waiting of a person")
    server.stop()
    waiting.join()
    assert waiting.ended == "done", "who waits when the server stops gets the answer first"
    asked_before = batch_requests(upstream)

    again = serve(*server.settings.endpoints)
    again.key = server.key
    client = again.client()
    done_before = client.batches.retrieve(batch.id).request_counts.completed
    assert done_before < 10
    ended = until(lambda: ended_batch(client, batch.id), what="the end of the batch")
    assert (ended.status, ended.request_counts.completed, ended.request_counts.failed) == ("completed", 10, 0)
    results = [json.loads(line) for line in client.files.content(ended.output_file_id).text.splitlines()]
    assert sorted(result["custom_id"] for result in results) == sorted(line["custom_id"] for line in lines)
    assert {result["response"]["body"]["choices"][0]["message"]["content"] for result in results} == {ANSWER}
    asked = batch_requests(upstream)
    assert len(asked) == 10
    assert asked.total() - 10 <= max(0, asked_before.total() - done_before), "only what was in flight is asked again"
    until(lambda: again.held() == 0, what="the end of all reservations")


def batch_requests(upstream: FakeUpstream) -> Counter[str]:
    texts = [request["messages"][0]["content"] for request in upstream.requests]
    return Counter(text for text in texts if text.startswith("item"))


def ended_batch(client: openai.OpenAI, batch_id: str):
    batch = client.batches.retrieve(batch_id)
    return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None


def test_quota_that_the_endpoint_calls_spent_is_waited_for_as_long_as_it_says(server, upstream):
    upstream.script.append(Behaviour(status=429, headers={"Retry-After": "2"}))
    began = time.monotonic()
    answer = server.client().chat.completions.create(**ask("at last"))
    assert answer.choices[0].message.content == ANSWER
    assert time.monotonic() - began >= 1.9
    assert len(upstream.requests) == 2
    assert server.held() == 0
