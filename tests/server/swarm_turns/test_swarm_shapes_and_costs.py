"""Answers that should have a form, and what is declared and told of the cost of an answer."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fakes.upstream import Behaviour
from tests.flow.served_gateway import until
from tests.server.swarm_turns.asking import (
    LISTED,
    ODD,
    TOOL_SERVER,
    WEATHER,
    chat,
    events_of,
    purposes,
    said,
    strategy,
    trace_of,
)

SUM = "What is 37*48+5?"
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}


@pytest.mark.parametrize("fields", [{"response_format": SCHEMA}, {"stop": ["="]}, {"max_tokens": 3}])
def test_sum_whose_answer_has_a_form_is_worded_by_a_model_that_knows_the_result(server, upstream, fields):
    response = chat(server, SUM, **fields)
    told = trace_of(server, response)
    assert (told["kind"], told["strategy"], purposes(told)) == ("arithmetic", "single", ["tool", "answer"])
    (asked,) = upstream.requests
    assert "37*48+5 = 1781" in asked["messages"][-1]["content"]
    assert {name: asked[name] for name in fields} == fields


def test_system_prompt_of_the_request_is_heeded_for_sums_too(server, upstream):
    messages = [{"role": "system", "content": "Answer in French words."}, {"role": "user", "content": SUM}]
    chat(server, "", messages=messages).raise_for_status()
    (asked,) = upstream.requests
    assert "Answer in French words." in asked["messages"][0]["content"]
    assert "37*48+5 = 1781" in asked["messages"][-1]["content"]


def test_short_answers_are_given_where_tools_are_there(serve, upstream):
    tools = {"lab": {"command": [sys.executable, str(TOOL_SERVER)]}}
    server = serve(tools=tools, roles={"primary": {"tools": ["lab"]}})
    states = server.app.state.swarm.servers.states
    until(lambda: states() == {"lab": "operational"}, what="the tool server")
    assert said(chat(server, WEATHER, max_tokens=4))
    assert upstream.requests[0]["tools"]


def test_question_about_documents_of_somebody_who_has_none_is_about_something_else(three_models, upstream):
    server = three_models(swarm={"ask_coordinator": False})
    told = trace_of(server, chat(server, "Write a bash script to search my documents folder for PDF files"))
    assert (told["kind"], told["role"]) == ("code", "specialist")
    assert told["notes"] == ["there are no documents of yours to search"]


def test_split_stays_with_the_role_that_was_asked_for_by_name(three_models, upstream):
    server = three_models()
    told = trace_of(
        server, chat(server, f"{LISTED}\n3. Write a Python function.", model="primary", headers=strategy("split"))
    )
    assert purposes(told) == ["part", "part", "part", "assemble"]
    assert {step["role"] for step in told["steps"]} == {"primary"}


def test_model_that_is_not_there_is_not_found_also_in_a_stream_of_several_calls(server):
    response = chat(server, "Hi there", model="nobody/x", headers=strategy("synthesise"), stream=True)
    assert response.status_code == 404


def test_what_is_declared_holds_with_the_decision_of_the_coordinator(three_models, upstream):
    server = three_models()
    spent = {"prompt_tokens": 200, "completion_tokens": 30, "total_tokens": 230}
    upstream.script.append(Behaviour(answer='{"role": "specialist"}', usage=spent))
    told = trace_of(server, chat(server, ODD, max_tokens=16))
    assert purposes(told) == ["decide", "answer"]
    assert told["prompt_tokens"] + told["completion_tokens"] <= told["worst_case_tokens"]


def test_readers_of_one_shared_stream_are_told_the_same_cost(three_models, upstream):
    server = three_models()
    upstream.behaviour = Behaviour(answer="I'm sorry, I cannot answer that.", delay_seconds=0.2)

    def total_tokens(_: int) -> int:
        fields = {"temperature": 0, "max_tokens": 50, "stream": True, "stream_options": {"include_usage": True}}
        response = chat(server, "Tell me about boats", headers=strategy("cascade"), **fields)
        events = [json.loads(event[6:]) for event in events_of(response) if event.startswith("data: {")]
        return [event["usage"]["total_tokens"] for event in events if event.get("usage")][-1]

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(total_tokens, range(4)))
    assert len(set(told)) == 1, told


def test_nul_of_a_question_is_not_in_its_trace(server):
    response = chat(server, "2+2\x00?", headers=strategy("calculate"))
    assert "\\u0000" not in json.dumps(trace_of(server, response))
