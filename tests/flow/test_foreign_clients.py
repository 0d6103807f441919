"""Clients that others wrote chat with the real embedded model: OpenAI's own library, and the tool `llm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from tests.flow.served_gateway import ServedGateway, until

from everswarm.settings import EMBEDDED_MODEL, Settings

pytestmark = pytest.mark.model

ASK = [{"role": "user", "content": "What is the capital of Japan?"}]
SHORT = {"model": "primary", "messages": ASK, "temperature": 0, "max_tokens": 16}
MULTIPLY = {
    "name": "multiply",
    "description": "Multiply two whole numbers.",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}
SHOUT = {"name": "shout", "parameters": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 9}}}}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
NO_CACHE = {"X-Everswarm-Cache": "off"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with pytest.MonkeyPatch.context() as settings_of:
        settings_of.setenv("EVERSWARM_CONFIG", os.devnull)
        running = ServedGateway(Settings(home=tmp_path_factory.mktemp("gateway") / "home"))
        running.start()
        until(lambda: running.app.state.gateway.states() == {"embedded": "operational"}, what="the engine", seconds=120)
        yield running
        running.stop()


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def text_of(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_openai_client_gets_the_same_answer_whole_and_streamed(client):
    whole = client.chat.completions.create(**SHORT, extra_headers=NO_CACHE)
    assert "Tokyo" in whole.choices[0].message.content
    assert whole.model == EMBEDDED_MODEL
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**SHORT, stream=True, extra_headers=NO_CACHE))
    assert text_of(chunks) == whole.choices[0].message.content
    assert len(chunks) > 5, "it comes piece by piece"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for the counts"


def test_openai_client_gets_an_answer_again_from_the_cache(client):
    first = client.chat.completions.with_raw_response.create(**SHORT)
    again = client.chat.completions.with_raw_response.create(**SHORT)
    streamed = client.chat.completions.create(**SHORT, stream=True)
    assert again.headers["X-Everswarm-Cache"] == "hit"
    assert text_of(streamed) == again.parse().choices[0].message.content == first.parse().choices[0].message.content


def test_stream_ends_with_the_token_counts_when_asked(client):
    options = {"include_usage": True}
    *pieces, last = client.chat.completions.create(**SHORT, stream=True, stream_options=options, extra_headers=NO_CACHE)
    assert last.choices == []
    assert last.usage.completion_tokens >= 1
    assert all(piece.usage is None for piece in pieces)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come(client, stream):
    options = {"logprobs": True, "top_logprobs": 3, "extra_headers": NO_CACHE}
    if stream:
        chunks = client.chat.completions.create(**SHORT, **options, stream=True)
        tokens = [token for chunk in chunks for choice in chunk.choices for token in content_of(choice.logprobs)]
    else:
        tokens = content_of(client.chat.completions.create(**SHORT, **options).choices[0].logprobs)
    assert len(tokens) > 3
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def content_of(logprobs) -> list:
    return (logprobs.content or []) if logprobs else []


def test_several_answers_to_one_request(client):
    answer = client.chat.completions.create(**{**SHORT, "temperature": 1.5, "max_tokens": 8}, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.message.content for choice in answer.choices)


def test_seed_repeats_an_answer_and_stop_ends_it(client):
    warm = {**SHORT, "temperature": 1.5, "extra_headers": NO_CACHE}
    first, second = (client.chat.completions.create(**warm, seed=7).choices[0].message.content for _ in range(2))
    assert first == second
    whole = client.chat.completions.create(**SHORT).choices[0].message.content
    stopped = client.chat.completions.create(**SHORT, stop=[" Tokyo"]).choices[0]
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == whole.split(" Tokyo")[0]


def tools(*functions) -> list[dict]:
    return [{"type": "function", "function": function} for function in functions]


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("functions", "choice"),
    [((MULTIPLY,), "required"), ((SHOUT, MULTIPLY), named("multiply")), ((SHOUT, MULTIPLY), "required")],
    ids=["the only one", "by name", "any"],
)
def test_demanded_tool_is_called_with_arguments_that_fit(client, functions, choice):
    asked = {**SHORT, "max_tokens": 60, "messages": [{"role": "user", "content": "How much is 7 times 6?"}]}
    asked |= {"tools": tools(*functions), "tool_choice": choice}
    whole = client.chat.completions.create(**asked, extra_headers=NO_CACHE).choices[0]
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls
    check(call.function.name, call.function.arguments)
    assert call.id
    assert whole.message.content is None

    chunks = list(client.chat.completions.create(**asked, stream=True, extra_headers=NO_CACHE))
    pieces = [piece for chunk in chunks for choice in chunk.choices for piece in choice.delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    name, arguments = (
        "".join(getattr(piece.function, field) or "" for piece in pieces) for field in ("name", "arguments")
    )
    assert (name, arguments) == (call.function.name, call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert text_of(chunks) == ""


def check(name: str, arguments: str) -> None:
    said = json.loads(arguments)
    if name == "multiply":
        assert set(said) == {"a", "b"}
        assert all(type(number) is int for number in said.values())
    else:
        assert name == "shout"


def test_tool_that_is_not_there_cannot_be_demanded(client):
    with pytest.raises(openai.UnprocessableEntityError, match=r"a call of 'divide'.*are: multiply"):
        client.chat.completions.create(**SHORT, tools=tools(MULTIPLY), tool_choice=named("divide"))


def test_answer_goes_on_after_the_result_of_a_tool(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "multiply", "arguments": '{"a": 7, "b": 6}'}}
    turns = [
        {"role": "user", "content": "How much is 7 times 6?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    answer = client.chat.completions.create(**{**SHORT, "messages": turns}, tools=tools(MULTIPLY))
    assert answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_strict_schema_shapes_the_answer(client, stream):
    asked = {**SHORT, "max_tokens": 60, "response_format": STRICT, "extra_headers": NO_CACHE}
    answer = client.chat.completions.create(**asked, stream=stream)
    said = json.loads(text_of(answer) if stream else answer.choices[0].message.content)
    assert set(said) == {"city", "capital"}
    assert type(said["capital"]) is bool


@pytest.fixture(scope="module")
def llm(server, tmp_path_factory):
    """Return a function that runs the command-line tool `llm`, which knows our server as a model."""
    pytest.importorskip("llm", reason="needs the tool llm")
    home = tmp_path_factory.mktemp("llm")
    entry = {"model_id": "swarm", "model_name": "primary", "api_base": f"{server.url}/v1", "api_key_name": "everswarm"}
    entry |= {"supports_schema": True, "supports_tools": True}
    (home / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    (home / "keys.json").write_text(json.dumps({"everswarm": server.key}))

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "llm", "prompt", "-m", "swarm", "-o", "temperature", "0", *map(str, arguments)]
        environment = {**os.environ, "LLM_USER_PATH": str(home), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_llm_tool_chats_streaming_and_not(llm):
    question = "What is the capital of Japan?"
    streamed = llm("-o", "max_tokens", "16", question)
    assert "Tokyo" in streamed
    assert llm("-o", "max_tokens", "16", "--no-stream", question) == streamed


def test_llm_tool_gets_an_answer_in_the_shape_of_a_schema(llm):
    said = json.loads(llm("-o", "max_tokens", "60", "--schema", json.dumps(CITY), "What is the capital of Japan?"))
    assert set(said) == {"city", "capital"}


def test_llm_tool_offers_a_function(llm, server):
    function = "def multiply(a: int, b: int) -> int:\n    'Multiply two whole numbers.'\n    return a * b\n"
    assert llm("-o", "max_tokens", "24", "--functions", function, "How much is 7 times 6?").strip()
