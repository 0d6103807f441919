"""The swarm on the real embedded model, asked with OpenAI's own library: who answers what, and what the trace says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.flow.served_gateway import ServedGateway, until

from everswarm.settings import EMBEDDED_MODEL, Settings

pytestmark = pytest.mark.model

TOOL_SERVER = Path(__file__).parents[1] / "fakes" / "mcp_server.py"
SUM = "What is 37*48+5?"
APPLES = "Tom has 3 apples and buys 4 more. How many apples does he have?"
CODE = "Write a Python function that adds two numbers."
HELLO = "Hello! How are you?"
LISTED = "Please answer both:\n1. What is the capital of Japan?\n2. What is the capital of France?"
WEATHER = "What is the current weather and temperature in the city of Oslo?"
NO_CACHE = {"X-Everswarm-Cache": "off"}
SHORT = {"temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {
        "tools": {"lab": {"command": [sys.executable, str(TOOL_SERVER)]}},
        "roles": {
            "primary": {"tools": ["clock", "documents", "lab"]},
            "translator": {"system_prompt": "You translate what the user says into German."},
        },
    }
    with pytest.MonkeyPatch.context() as settings_of:
        settings_of.setenv("EVERSWARM_CONFIG", os.devnull)
        running = ServedGateway(Settings(home=tmp_path_factory.mktemp("swarm") / "home", **settings))
        running.start()
        state = running.app.state
        until(lambda: state.gateway.states() == {"embedded": "operational"}, what="the engine", seconds=120)
        until(lambda: state.swarm.servers.by_server().get("lab"), what="the server of tools")
        yield running
        running.stop()


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def ask(request, server):
    """Return a function that asks, and returns the text of the answer, its token counts and its trace."""
    client = server.client()

    def asked(text: str, *, strategy: str | None = None, **options) -> tuple[str, object, dict]:
        headers = NO_CACHE | ({"X-Everswarm-Strategy": strategy} if strategy else {})
        fields = {**SHORT, "model": "everswarm", "messages": [{"role": "user", "content": text}], **options}
        if not request.param:
            answer = client.chat.completions.create(**fields, extra_headers=headers)
            return answer.choices[0].message.content, answer.usage, trace_of(server, answer.id)
        stream = client.chat.completions.create(
            **fields, extra_headers=headers, stream=True, stream_options={"include_usage": True}
        )
        *pieces, last = stream
        said = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
        return said, last.usage, trace_of(server, last.id)

    return asked


def trace_of(server, interaction_id: str) -> dict:
    with server.http() as http:
        path = f"/api/interactions/{interaction_id}/trace"
        found = until(lambda: answer if (answer := http.get(path)).status_code == 200 else None, what="the trace")
    return found.json()


def purposes(trace: dict) -> list[str]:
    return [step["purpose"] for step in trace["steps"]]


def test_sum_goes_to_the_calculator(ask):
    said, usage, trace = ask(SUM)
    assert "1781" in said
    (step,) = trace["steps"]
    assert (trace["kind"], trace["strategy"], trace["model_calls"]) == ("arithmetic", "calculate", 0)
    assert (step["purpose"], step["tool"], step["outcome"]) == ("tool", "calculator", "done")
    assert trace["prompt_tokens"] + trace["completion_tokens"] == usage.total_tokens == 0


def test_word_problem_is_voted_on(ask):
    said, usage, trace = ask(APPLES, strategy="vote", max_tokens=48)
    assert said
    assert (trace["kind"], trace["strategy"], trace["role"]) == ("mathematics", "vote", "specialist")
    assert purposes(trace)[:2] == ["vote", "vote"]
    assert purposes(trace)[-1] == "check"
    assert trace["model_calls"] in (2, 3)
    assert usage.total_tokens == trace["prompt_tokens"] + trace["completion_tokens"] <= trace["worst_case_tokens"]


@pytest.mark.parametrize(
    ("text", "kind", "role"), [(CODE, "code", "specialist"), (HELLO, "conversation", "primary")], ids=["code", "talk"]
)
def test_question_goes_to_the_role_that_is_good_at_it(ask, text, kind, role):
    said, usage, trace = ask(text)
    assert said
    (step,) = trace["steps"]
    assert (trace["kind"], trace["strategy"], trace["role"]) == (kind, "single", role)
    assert (step["role"], step["endpoint"], step["model"]) == (role, "embedded", EMBEDDED_MODEL)
    assert (step["prompt_tokens"], step["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)
    assert step["seconds"] > 0


def test_question_about_the_date_is_answered_with_the_clock(ask):
    said, _usage, trace = ask("What day is it today?", max_tokens=40)
    assert said
    assert purposes(trace) == ["tool", "answer"]
    assert trace["steps"][0]["tool"] == "clock"
    assert str(datetime.now(UTC).year) in trace["steps"][0]["detail"]


@pytest.mark.parametrize("strategy", ["cascade", "split", "synthesise"])
def test_several_calls_are_one_answer_whose_usage_is_their_sum(ask, strategy):
    text = LISTED if strategy == "split" else "Describe the sea in one sentence."
    said, usage, trace = ask(text, strategy=strategy, max_tokens=32)
    assert said
    assert trace["strategy"] == strategy
    calls = [step for step in trace["steps"] if "role" in step]
    assert len(calls) == trace["model_calls"] == {"cascade": 1, "split": 3, "synthesise": 4}[strategy]
    assert sum(step["completion_tokens"] for step in calls) == usage.completion_tokens
    assert usage.total_tokens <= trace["worst_case_tokens"]


def test_model_calls_a_tool_of_a_real_server(ask):
    said, _usage, trace = ask(WEATHER, max_tokens=48)
    assert said
    step = next(step for step in trace["steps"] if step["purpose"] == "tool")
    assert (step["tool"], step["outcome"]) == ("lab__weather", "done")
    assert "degrees and rain in" in step["detail"]
    assert trace["kind"] == "tools"


def test_role_of_the_settings_is_a_model_like_any_other(ask, server):
    assert "translator" in [model.id for model in server.client().models.list()]
    said, _usage, trace = ask("Good morning", model="translator")
    assert said
    assert (trace["role"], trace["strategy"]) == ("translator", "single")


def test_statuses_are_comments_before_the_answer(server):
    body = {"messages": [{"role": "user", "content": LISTED}], "stream": True, **SHORT}
    headers = {**NO_CACHE, "X-Everswarm-Strategy": "split"}
    with server.http() as http:
        events = http.post("/v1/chat/completions", json=body, headers=headers).raise_for_status().text.split("\n\n")
    told = [json.loads(event.removeprefix(": everswarm ")) for event in events if event.startswith(": everswarm ")]
    assert [status["status"] for status in told] == ["2 parts are answered", "the primary puts 2 parts together"]
    assert re.match(r": everswarm \{", events[0])
    assert events[-2] == "data: [DONE]"


def test_llm_tool_ignores_statuses(server, tmp_path):
    pytest.importorskip("llm", reason="needs the tool llm")
    entry = {"model_id": "swarm", "model_name": "everswarm", "api_base": f"{server.url}/v1", "api_key_name": "k"}
    entry["headers"] = {"X-Everswarm-Strategy": "split"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
    (tmp_path / "keys.json").write_text(json.dumps({"k": server.key}))
    command = [sys.executable, "-m", "llm", "prompt", "-m", "swarm", "-o", "max_tokens", "24", LISTED]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "status" not in done.stdout
