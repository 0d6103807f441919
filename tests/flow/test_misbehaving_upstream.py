"""Whatever an endpoint does, the reader gets a whole answer or a clear error, and nothing reserved stays reserved."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest
from tests.fakes.upstream import NO_USAGE, Behaviour, FakeUpstream
from tests.flow.served_gateway import ASK, until

from everswarm.settings import EndpointSettings, GatewaySettings, QuotaSettings

ANSWER = "The capital of France is Paris."
SECOND = "The second one says Paris."
QUOTA = QuotaSettings(tokens_per_hour=100_000, requests_per_hour=10_000)


def remote(name: str, upstream: FakeUpstream, *, weight: float = 1.0, **options) -> EndpointSettings:
    options = {"timeout_seconds": 2, "quota": QUOTA, **options}
    return EndpointSettings(
        name=name, base_url=upstream.base_url, model="org/model", roles=["primary"], weight=weight, **options
    )


@pytest.fixture
def first():
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def second():
    with FakeUpstream(answer=SECOND) as running:
        yield running


@pytest.fixture
def server(serve, first, second):
    """Two endpoints, of which the second is asked only when the first fails."""
    running = serve(remote("first", first), remote("second", second, weight=0), gateway=GatewaySettings(retries=0))
    yield running
    until(lambda: running.held() == 0, what="the end of all reservations", seconds=10)


def whole(server, **options) -> str:
    answer = server.client().chat.completions.create(model="primary", messages=ASK, **options)
    return answer.choices[0].message.content


def streamed(server, **options) -> str:
    stream = server.client().chat.completions.create(model="primary", messages=ASK, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def events_of(server) -> list[str]:
    """Return the events of a stream as they are on the wire."""
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "primary", "messages": ASK, "stream": True})
        assert answer.status_code == 200
        return answer.text.split("\n\n")


def limit(server, endpoint: str, unit: str) -> dict:
    return next(limit for limit in server.quotas()[endpoint]["limits"] if limit["unit"] == unit)


BEFORE_THE_ANSWER = {
    "500": Behaviour(status=500, body=b"boom"),
    "502": Behaviour(status=502, body=b"<html>bad gateway</html>"),
    "503 for a while": Behaviour(status=503, headers={"Retry-After": "3"}),
    "429": Behaviour(status=429, headers={"Retry-After": "3"}),
    "429 without Retry-After": Behaviour(status=429),
    "402": Behaviour(status=402, headers={"Retry-After": "3"}),
    "401": Behaviour(status=401, body=b'{"error":{"message":"bad key"}}'),
    "404": Behaviour(status=404, body=b'{"error":{"message":"no such model"}}'),
    "no JSON": Behaviour(body=b"<html>welcome</html>"),
    "JSON, but no answer": Behaviour(body=b'{"hello": [1, 2, 3]}'),
    "a list": Behaviour(body=b"[]"),
    "nothing": Behaviour(body=b""),
    "choices that are none": Behaviour(body=b'{"choices": ["Paris", 7, null]}'),
    "a message that is none": Behaviour(body=b'{"choices": [{"index": 0, "message": "Paris"}]}'),
    "no choices": Behaviour(body=b'{"choices": []}'),
    "chunks with choices that are none": Behaviour(body=b'data: {"choices": ["Paris"]}\n\ndata: [DONE]\n\n'),
    "chunks with deltas that are none": Behaviour(
        body=b'data: {"choices": [{"index": "0", "delta": "Paris"}]}\n\ndata: [DONE]\n\n'
    ),
    "tool calls that are none": Behaviour(
        body=b'data: {"choices": [{"index": 0, "delta": {"tool_calls": "Paris"}}]}\n\ndata: [DONE]\n\n'
    ),
    "chunks whose choices are none": Behaviour(body=b'data: {"choices": "Paris"}\n\ndata: [DONE]\n\n'),
    "an answer cut in the middle": Behaviour(body=b'{"choices": [{"message": {"content": "The cap'),
    "an error with status 200": Behaviour(body=b'{"error": {"message": "out of memory"}}'),
    "silence": Behaviour(first_byte_seconds=20),
    "a bad length": Behaviour(body=b"{}", headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("name", BEFORE_THE_ANSWER)
@pytest.mark.parametrize("read", [whole, streamed])
def test_next_endpoint_answers_where_the_first_does_not_begin(server, first, second, read, name):
    first.behaviour = BEFORE_THE_ANSWER[name]
    assert read(server) == SECOND
    assert len(first.requests) == len(second.requests) == 1
    until(lambda: server.held() == 0, what="the end of all reservations", seconds=10)
    assert limit(server, "second", "requests")["used"] == 1


@pytest.mark.parametrize(
    "name", ["502", "no JSON", "JSON, but no answer", "an error with status 200", "an answer cut in the middle"]
)
@pytest.mark.parametrize("read", [whole, streamed])
def test_clear_error_where_no_endpoint_answers(server, first, second, read, name):
    first.behaviour = second.behaviour = BEFORE_THE_ANSWER[name]
    with pytest.raises(openai.InternalServerError, match="No endpoint can answer for 'primary' now") as caught:
        read(server)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert "'first'" in str(caught.value)
    assert "'second'" in str(caught.value)


LIES = {
    "none": NO_USAGE,
    "null": None,
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "negative": {"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12},
    "texts": {"prompt_tokens": "5", "completion_tokens": "7", "total_tokens": "12"},
    "fractions": {"prompt_tokens": 5.5, "completion_tokens": 7.5, "total_tokens": 13.0},
    "huge": {"prompt_tokens": 10**18, "completion_tokens": 10**18, "total_tokens": 2 * 10**18},
    "over an int": {"prompt_tokens": 10**30, "completion_tokens": 1, "total_tokens": 10**30},
    "a list": [1, 2],
    "a text": "many",
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("read", [whole, streamed])
def test_lies_about_usage_do_no_harm(server, first, read, name):
    first.behaviour = Behaviour(usage=LIES[name])
    assert read(server) == ANSWER
    until(lambda: server.held() == 0, what="the end of the reservation", seconds=10)
    used = limit(server, "first", "tokens")["used"]
    assert 0 <= used < 1000
    assert used > 0 or name == "zero"
    assert limit(server, "first", "requests")["used"] == 1
    assert read(server) == ANSWER, "the next one is not shut out"


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (Behaviour(answer="Par\udcffis is\udce2\udc82 it", raw_bytes=True), "Par\ufffdis is\ufffd it"),
        (Behaviour(answer="half a \ud83d smile"), "half a \ufffd smile"),
    ],
    ids=["invalid UTF-8", "half a surrogate pair"],
)
@pytest.mark.parametrize("read", [whole, streamed])
def test_broken_text_reaches_the_reader_whole(server, first, read, behaviour, said):
    first.behaviour = behaviour
    assert read(server).encode("utf-8", "replace").decode().replace("?", "\ufffd") == said


@pytest.mark.parametrize("write_bytes", [None, 1, 7, 64])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_stream_is_read_however_it_is_written(server, first, write_bytes, line_end):
    answer = "Zürich, 東京 and 🙂."
    surrogates = answer.encode().decode("utf-8", "surrogateescape")
    first.behaviour = Behaviour(
        answer=surrogates, raw_bytes=True, write_bytes=write_bytes, line_end=line_end, comments=True
    )
    assert streamed(server) == answer
    assert len(first.requests) == 1


def test_stream_whose_end_is_not_said_is_told_and_not_taken_for_whole(server, first, second):
    first.behaviour = Behaviour(ends_with_done=False)
    events = events_of(server)
    assert "stopped in the middle of its answer" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    assert "data: [DONE]" not in events
    assert second.requests == []


def test_stream_that_is_cut_is_told_and_what_was_read_is_counted(server, first, second):
    first.behaviour = Behaviour(cut_after_pieces=3)
    events = events_of(server)
    assert "broke off" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    assert second.requests == []
    until(lambda: server.held() == 0, what="the end of the reservation", seconds=10)
    assert limit(server, "first", "tokens")["used"] > 0


def test_stream_that_is_cut_before_its_first_piece_goes_to_the_next_endpoint(server, first, second):
    first.behaviour = Behaviour(cut_after_pieces=0)
    assert streamed(server) == SECOND


def test_stream_that_falls_silent_is_told(server, first):
    first.behaviour = Behaviour(delay_seconds=0.0, repeat_forever=False)
    first.script.append(Behaviour(delay_seconds=2.5, cut_after_pieces=None))
    assert streamed(server) == SECOND, "silence before the first piece is for the next endpoint"
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"Par"}}]}\n\n'
    headers = {"Content-Type": "text/event-stream", "Content-Length": "9999"}
    first.script.append(Behaviour(body=chunk, headers=headers))
    with pytest.raises(openai.APIError, match=r"broke off|did not answer|stopped in the middle"):
        streamed(server)


def test_slow_stream_comes_whole(server, first):
    first.behaviour = Behaviour(first_byte_seconds=0.3, delay_seconds=0.1)
    assert streamed(server) == ANSWER


def test_402_closes_the_endpoint_and_the_other_one_answers(server, first, second):
    first.behaviour = Behaviour(status=402, body=b'{"error":"You have no credit left"}')
    assert whole(server) == SECOND
    view = server.quotas()["first"]
    assert view["closed_until"]
    assert "no credit left" in view["closed_reason"]
    assert server.quotas()["second"]["closed_until"] is None
    first.behaviour = Behaviour()
    assert [whole(server), streamed(server)] == [SECOND] * 2
    assert len(first.requests) == 1, "nobody asks before it opens again"


def test_429_closes_the_endpoint_for_as_long_as_it_says(server, first):
    first.script.append(Behaviour(status=429, headers={"Retry-After": "2"}))
    assert whole(server) == SECOND
    assert server.quotas()["first"]["closed_until"]
    until(lambda: whole(server) == ANSWER, what="an answer of the endpoint that opened again", seconds=10)
    assert server.quotas()["first"]["closed_until"] is None


def test_what_an_endpoint_says_of_its_limits_is_heeded(server, first):
    first.script.append(Behaviour(headers={"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2s"}))
    assert whole(server) == ANSWER
    assert limit(server, "first", "tokens")["left"] == 0
    assert whole(server) == SECOND
    until(lambda: whole(server) == ANSWER, what="an answer after the reset", seconds=10)


@pytest.mark.parametrize("stream", [True, False])
def test_reader_who_leaves_frees_what_was_reserved(server, first, stream):
    first.behaviour = Behaviour(repeat_forever=True, delay_seconds=0.02) if stream else Behaviour(delay_seconds=1.9)
    body = {"model": "primary", "messages": ASK, "stream": stream, "max_tokens": 500}
    with server.http() as http:
        left = threading.Event()

        def read() -> None:
            try:
                with http.stream("POST", "/v1/chat/completions", json=body, timeout=0.5) as answer:
                    for number, _ in enumerate(answer.iter_lines()):
                        if number > 4:
                            return
            except httpx.ReadTimeout:
                return
            finally:
                left.set()

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: server.held() > 500, what="a reservation")
        assert left.wait(10)
        reader.join()
    assert first.reader_left.wait(10)
    until(lambda: server.held() == 0, what="the end of the reservation", seconds=10)
    assert 0 < limit(server, "first", "tokens")["used"] < 500


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "primary", "messages": [{"role": "user", "content": "x" * 10_000_000}]}, 413, "2,097,152 bytes"),
        ({"model": "gpt-9", "messages": ASK}, 404, "There is no model 'gpt-9' here"),
        ({"model": "primary", "messages": []}, 422, "messages"),
        ({"model": "primary"}, 422, "messages"),
        ({"model": "primary", "messages": {"role": "user"}}, 422, "messages"),
        ({"model": ["primary"], "messages": ASK}, 422, "model"),
        ({"model": "primary", "messages": ASK, "max_tokens": -1}, 422, "max_tokens"),
        ({"model": "primary", "messages": ASK, "max_tokens": "12"}, 422, "max_tokens"),
        ({"model": "primary", "messages": ASK, "max_tokens": 10**40}, 422, "max_tokens"),
        ({"model": "primary", "messages": ASK, "n": 0}, 422, "n"),
        ({"model": "primary", "messages": ASK, "stream_options": "all"}, 422, "stream_options"),
        ({"model": "primary", "messages": ASK, "max_tokens": 200_000}, 422, "it can never fit"),
        (
            {"model": "primary", "messages": [{"role": "user", "content": "word " * 19_000}] * 5},
            422,
            "it can never fit",
        ),
        ([], 422, "body"),
        ("hello", 422, "body"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else str(value),
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_request_is_a_clear_error_and_reserves_nothing(server, first, second, body, status, said, stream):
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={**body, "stream": stream} if isinstance(body, dict) else body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert server.held() == 0
    assert first.requests == second.requests == []


def test_headers_that_cannot_be_are_refused(server, first):
    with server.http() as http:
        for name, value in [
            ("X-Everswarm-Wait-Seconds", "-1"),
            ("X-Everswarm-Wait-Seconds", "nan"),
            ("X-Everswarm-Wait-Seconds", "soon"),
            ("X-Everswarm-Priority", "royal"),
            ("X-Everswarm-Cache", "maybe"),
        ]:
            answer = http.post("/v1/chat/completions", json={"messages": ASK}, headers={name: value})
            assert answer.status_code == 422, (name, value)
            assert name in answer.json()["error"]["message"]
    assert first.requests == []
