"""The OpenAI protocol as its official client sees it, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest
import uvicorn
from sqlalchemy import select
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.schemas.server import Scope
from everswarm.server import app as app_module
from everswarm.server.app import create_app
from everswarm.server.auth import create_key
from everswarm.server.feedback.tables import interactions
from everswarm.server.gateway.tables import usage
from everswarm.settings import EMBEDDED_MODEL, EndpointSettings, Settings

ASK = [{"role": "user", "content": "capital of France?"}]
ANSWER = "The capital of France is Paris."


def until(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)
    return found


@pytest.fixture
def serve(monkeypatch):
    """Return a function that serves `settings` on a free port and gives the address, the app and a user's key."""
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)  # the workflow engine has tests of its own
    running = []

    def start(settings: Settings) -> SimpleNamespace:
        app = create_app(settings)
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        key = create_key(app.state.database, scope=Scope.USER, label="ann").key
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
        return SimpleNamespace(app=app, client=client, key=key, url=f"http://127.0.0.1:{port}/v1")

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def upstream():
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def server(serve, upstream, tmp_path):
    endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", timeout_seconds=5)
    return serve(Settings(home=tmp_path / "home", endpoints=[endpoint]))


def stored(server, table=interactions):
    with server.app.state.database.read() as connection:
        return connection.execute(select(table)).all()


def text_of(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def post(server, body, **options):
    headers = {"Authorization": f"Bearer {server.key}"}
    return httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=30, **options)


@pytest.mark.parametrize("model", ["everswarm", "primary", "coordinator", "specialist", "org/model"])
def test_official_client_gets_a_whole_answer_from_each_model(server, upstream, model):
    answer = server.client.chat.completions.create(model=model, messages=ASK)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.completion_tokens == 6
    assert answer.model == "org/model"
    assert upstream.requests[0]["model"] == "org/model"


def test_answer_is_stored_as_the_interaction_that_its_id_names(server):
    raw = server.client.chat.completions.with_raw_response.create(
        model="specialist", messages=[{"role": "system", "content": "Be short."}, *ASK]
    )
    answer = raw.parse()
    assert raw.headers["X-Interaction-Id"] == answer.id
    (row,) = stored(server)
    assert (row.id, row.state, row.role, row.model, row.endpoint) == (
        answer.id,
        "complete",
        "specialist",
        "org/model",
        "up",
    )
    assert row.messages == [{"role": "system", "content": "Be short."}, *ASK]
    assert row.response == ANSWER
    assert (row.prompt_tokens, row.completion_tokens) == (5, 6)
    (cost,) = stored(server, usage)
    assert (cost.interaction_id, cost.outcome, cost.completion_tokens) == (answer.id, "answered", 6)


def test_official_client_streams_and_every_chunk_has_the_interactions_id(server):
    chunks = list(server.client.chat.completions.create(model="everswarm", messages=ASK, stream=True))
    assert text_of(chunks) == ANSWER
    assert all(chunk.choices for chunk in chunks), "token counts come only when asked for"
    (row,) = stored(server)
    assert {chunk.id for chunk in chunks} == {row.id}
    assert (row.response, row.state, row.completion_tokens) == (ANSWER, "complete", 6)


def test_stream_ends_with_the_token_counts_when_asked(server):
    options = {"include_usage": True}
    chunks = list(
        server.client.chat.completions.create(model="primary", messages=ASK, stream=True, stream_options=options)
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 9


def test_all_fields_reach_the_endpoint(server, upstream):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 12,
        "n": 2,
        "seed": 7,
        "stop": ["\n"],
        "logprobs": True,
        "top_logprobs": 3,
        "tools": tools,
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
    }
    server.client.chat.completions.create(model="primary", messages=ASK, **fields, extra_body={"lora": [{"id": 0}]})
    sent = upstream.requests[0]
    assert {name: sent[name] for name in fields} == fields
    assert sent["lora"] == [{"id": 0}]
    assert sent["messages"] == ASK
    assert "max_completion_tokens" not in sent


def test_only_text_is_stored(server, upstream):
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": "this?"},
    ]
    server.client.chat.completions.create(model="primary", messages=[{"role": "user", "content": parts}])
    assert upstream.requests[0]["messages"][0]["content"] == parts
    assert stored(server)[0].messages == [{"role": "user", "content": "what is\nthis?"}]


def test_models_are_the_swarm_the_roles_and_the_full_names(server):
    names = [model.id for model in server.client.models.list()]
    assert names == ["everswarm", "primary", "coordinator", "specialist", "org/model"]
    assert server.client.models.retrieve("org/model").id == "org/model"
    with pytest.raises(openai.NotFoundError, match="no model 'org/other' here"):
        server.client.models.retrieve("org/other")


def test_unknown_model_is_not_found(server):
    with pytest.raises(openai.NotFoundError, match=r"There is no model 'gpt-9' here\. There are: everswarm, primary"):
        server.client.chat.completions.create(model="gpt-9", messages=ASK)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": ASK, "max_tokens": -1}, "max_tokens"),
        ({"messages": ASK, "max_tokens": "many"}, "max_tokens"),
        ({"messages": ASK, "temperature": 9}, "temperature"),
        ({"messages": ASK, "stream": "yes"}, "stream"),
        ({"messages": ASK, "n": 1000}, "n"),
        ({"messages": ASK, "model": 7}, "model"),
    ],
)
def test_malformed_request_is_an_openai_error_that_names_the_field(server, upstream, body, field):
    answer = post(server, body)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["type"] == "invalid_request_error"
    assert error["param"].startswith(field)
    assert upstream.requests == []
    assert stored(server) == []


def test_half_a_character_is_refused_not_a_crash(server):
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    body = b'{"messages":[{"role":"user","content":"\\ud83d"}]}'
    assert httpx.post(f"{server.url}/chat/completions", content=body, headers=headers).status_code == 422


def test_what_the_endpoint_refuses_is_said_in_its_words(server, upstream):
    body = b'{"error":{"type":"exceed_context_size_error","message":"too long","n_prompt_tokens":9000,"n_ctx":4096}}'
    upstream.behaviour = Behaviour(status=400, body=body)
    with pytest.raises(openai.UnprocessableEntityError, match=r"has 9000 tokens, the model reads 4096\. Shorten it"):
        server.client.chat.completions.create(model="primary", messages=ASK)
    with pytest.raises(openai.UnprocessableEntityError, match="Shorten it"):
        server.client.chat.completions.create(model="primary", messages=ASK, stream=True)
    assert [(row.state, row.response) for row in stored(server)] == [("failed", None)] * 2


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_who_answers_is_503_with_retry_after(server, upstream, stream):
    upstream.behaviour = Behaviour(status=500)
    with pytest.raises(openai.InternalServerError, match="No endpoint can answer for 'primary' now") as caught:
        server.client.chat.completions.create(model="primary", messages=ASK, stream=stream)
    assert caught.value.status_code == 503
    assert int(caught.value.response.headers["Retry-After"]) > 0
    assert [row.state for row in stored(server)] == ["failed"]


def test_spent_quota_is_429_with_retry_after(server, upstream):
    upstream.behaviour = Behaviour(status=429, headers={"Retry-After": "30"})
    with pytest.raises(openai.RateLimitError) as caught:
        server.client.chat.completions.create(
            model="primary", messages=ASK, extra_headers={"X-Everswarm-Wait-Seconds": "0"}
        )
    assert caught.value.response.headers["Retry-After"] == "30"


def test_endpoint_that_breaks_off_is_told_in_the_stream_and_stored_as_failed(server, upstream):
    upstream.behaviour = Behaviour(cut_after_pieces=3)
    pieces = []
    with pytest.raises(openai.APIError, match="broke off"):
        for chunk in server.client.chat.completions.create(model="primary", messages=ASK, stream=True):
            pieces.append(chunk)
    assert text_of(pieces) == "The capital"
    (row,) = until(lambda: stored(server))
    assert (row.state, row.response) == ("failed", "The capital")


def test_reader_who_leaves_in_the_middle_ends_the_work_and_the_interaction_is_cut(server, upstream):
    upstream.behaviour = Behaviour(repeat_forever=True, delay_seconds=0.01)
    stream = server.client.chat.completions.create(model="primary", messages=ASK, stream=True)
    read = [next(stream) for _ in range(4)]
    stream.close()
    assert upstream.reader_left.wait(30)
    (row,) = until(lambda: stored(server))
    assert row.id == read[0].id
    assert row.state == "cut"
    assert row.response.startswith(text_of(read))
    assert until(lambda: stored(server, usage))[0].outcome == "cut"


def test_reader_who_does_not_wait_for_a_whole_answer_ends_the_work(server, upstream):
    upstream.behaviour = Behaviour(delay_seconds=4)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/chat/completions",
            json={"messages": ASK},
            headers={"Authorization": f"Bearer {server.key}"},
            timeout=0.5,
        )
    assert upstream.reader_left.wait(30)
    (row,) = until(lambda: stored(server))
    assert (row.state, row.response) == ("cut", None)


def test_events_are_what_the_protocol_says(server):
    answer = post(server, {"messages": ASK, "stream": True})
    events = answer.text.split("\n\n")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert events[-2:] == ["data: [DONE]", ""]
    first = json.loads(events[0].removeprefix("data: "))
    assert first["object"] == "chat.completion.chunk"
    assert first["id"] == answer.headers["X-Interaction-Id"]


def test_key_is_needed_and_a_workers_key_is_not_enough(server):
    nobody = server.client.with_options(api_key="esw_wrong")
    with pytest.raises(openai.AuthenticationError):
        nobody.models.list()
    worker = create_key(server.app.state.database, scope=Scope.WORKER, label="w").key
    with pytest.raises(openai.PermissionDeniedError):
        server.client.with_options(api_key=worker).chat.completions.create(model="primary", messages=ASK)
    device = create_key(server.app.state.database, scope=Scope.DEVICE, label="phone").key
    assert server.client.with_options(api_key=device).chat.completions.create(model="primary", messages=ASK).id


@pytest.mark.model
def test_official_client_chats_with_the_embedded_model(serve, tmp_path):
    server = serve(Settings(home=tmp_path / "home"))
    until(lambda: server.app.state.gateway.states() == {"embedded": "operational"})
    ask = [{"role": "user", "content": "What is the capital of Japan?"}]
    options = {"messages": ask, "temperature": 0, "max_tokens": 24}
    whole = server.client.chat.completions.create(model="primary", logprobs=True, top_logprobs=2, **options)
    assert "Tokyo" in whole.choices[0].message.content
    assert whole.model == EMBEDDED_MODEL
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    streamed = server.client.chat.completions.create(model="everswarm", stream=True, **options)
    assert text_of(streamed) == whole.choices[0].message.content
    long = [{"role": "user", "content": "word " * 6000}]
    with pytest.raises(openai.UnprocessableEntityError, match="Shorten it"):
        server.client.chat.completions.create(model="primary", messages=long)
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {
        "city": {"type": "string", "maxLength": 20}}, "required": ["city"]}}}  # fmt: skip
    answer = server.client.chat.completions.create(model="primary", response_format=shape, **options)
    assert "city" in json.loads(answer.choices[0].message.content)
    assert [row.state for row in stored(server)] == ["complete", "complete", "failed", "complete"]


def test_absurd_limit_is_refused(server):
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens"):
        server.client.chat.completions.create(model="primary", messages=ASK, max_tokens=2**64 - 1)
