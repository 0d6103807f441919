"""One of two endpoints dies in the middle of traffic, and comes back: nobody notices who had not begun to read."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.flow.served_gateway import ASK, until

from everswarm.settings import EndpointSettings, QuotaSettings

ANSWER = "The capital of France is Paris."
READERS = 8
MANY = QuotaSettings(tokens_per_hour=10_000_000)


class Traffic:
    """Readers that ask without a pause, whole answers and streams in turns, until told to stop."""

    def __init__(self, client: openai.OpenAI) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._client = client
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(READERS)
        self._readers = [self._pool.submit(self._read, number) for number in range(READERS)]

    def ended(self) -> int:
        return sum(self.outcomes.values())

    def stop(self) -> None:
        self._stop.set()
        self._pool.shutdown()
        for reader in self._readers:
            reader.result()

    def _read(self, number: int) -> None:
        turn = number
        while not self._stop.is_set():
            turn += 1
            try:
                self.outcomes[self._stream() if turn % 2 else self._whole()] += 1
            except openai.OpenAIError as error:
                self.failures.append(error)
                self.outcomes["failed before it began"] += 1

    def _whole(self) -> str:
        answer = self._client.chat.completions.create(model="primary", messages=ASK)
        return "whole" if answer.choices[0].message.content == ANSWER else "wrong"

    def _stream(self) -> str:
        pieces: list[str] = []
        reason = None
        stream = self._client.chat.completions.create(model="primary", messages=ASK, stream=True)
        try:
            for chunk in stream:
                pieces.append(chunk.choices[0].delta.content or "")
                reason = chunk.choices[0].finish_reason or reason
        except openai.APIError as error:
            if not pieces:
                raise
            return "told that it broke off" if "broke off" in str(error) else f"told: {error}"
        return "streamed" if ("".join(pieces), reason) == (ANSWER, "stop") else "ended in silence"


def remote(name: str, upstream: FakeUpstream) -> EndpointSettings:
    return EndpointSettings(
        name=name, base_url=upstream.base_url, model="org/model", roles=["primary"], timeout_seconds=10, quota=MANY
    )


@pytest.fixture
def upstreams():
    with FakeUpstream(delay_seconds=0.005) as first, FakeUpstream(delay_seconds=0.005) as second:
        yield first, second


def test_no_request_fails_that_had_not_begun_when_one_of_two_endpoints_dies(serve, upstreams):
    first, second = upstreams
    server = serve(remote("first", first), remote("second", second))
    traffic = Traffic(server.client())
    try:
        until(lambda: traffic.ended() >= 60 and len(first.requests) > 10, what="traffic to both")
        first.die()
        died_at, before = len(first.requests), traffic.ended()
        until(lambda: traffic.ended() >= before + 100, what="traffic without the first")
        assert len(first.requests) == died_at
        first.revive()
        until(lambda: len(first.requests) >= died_at + 10, what="traffic to the first again", seconds=30)
    finally:
        traffic.stop()
    assert not traffic.failures, traffic.failures[:3]
    assert set(traffic.outcomes) <= {"whole", "streamed", "told that it broke off"}, traffic.outcomes
    assert traffic.outcomes["whole"] > 50
    assert traffic.outcomes["streamed"] > 50
    assert traffic.outcomes["told that it broke off"] <= READERS
    assert set(server.app.state.gateway.states().values()) == {"operational"}
    until(lambda: server.held() == 0, what="the end of all reservations")


def test_stream_that_had_begun_at_an_endpoint_that_dies_says_so(serve, upstreams):
    first, second = upstreams
    for upstream in upstreams:
        upstream.behaviour = Behaviour(delay_seconds=0.02, repeat_forever=True)
    server = serve(remote("first", first), remote("second", second))
    stream = server.client().chat.completions.create(model="primary", messages=ASK, stream=True)
    for _ in range(4):
        next(stream)
    busy = first if first.requests else second
    busy.die()
    with pytest.raises(openai.APIError, match="broke off"):
        for _ in stream:
            assert busy.requests
    other = second if busy is first else first
    assert other.requests == [], "what was read cannot be taken back, so nobody else is asked"
    until(lambda: server.held() == 0, what="the end of the reservation")


def test_who_asks_while_the_only_endpoint_is_gone_is_told_when_to_come_back(serve, upstreams):
    only, _ = upstreams
    server = serve(remote("only", only))
    only.die()
    assert outcome(server) == "told to come back"
    only.revive()
    until(lambda: outcome(server) == "answered", what="an answer of the revived endpoint", seconds=20)
    assert server.held() == 0


def outcome(server) -> str:
    try:
        server.client().chat.completions.create(model="primary", messages=ASK)
    except openai.InternalServerError as error:
        assert error.status_code == 503
        assert int(error.response.headers["Retry-After"]) > 0
        return "told to come back"
    return "answered"
