"""Roles over HTTP: what each adds, who is asked, who decides where the rules cannot."""

from __future__ import annotations

import sys

import openai
import pytest
from tests.fakes.upstream import Behaviour
from tests.flow.served_gateway import until
from tests.server.swarm_turns.asking import ODD, TOOL_SERVER, WEATHER, chat, endpoint, purposes, stored, trace_of


def test_role_adds_its_prompt_and_sampling_to_what_the_model_is_asked_and_not_to_what_is_stored(serve, upstream):
    server = serve(roles={"primary": {"system_prompt": "Be kind.", "temperature": 0.3, "top_p": 0.9}})
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "capital of France?"}]
    server.client().chat.completions.create(model="everswarm", messages=messages)
    (asked,) = upstream.requests
    assert asked["messages"] == [{"role": "system", "content": "Be kind.\n\nBe short."}, messages[1]]
    assert (asked["temperature"], asked["top_p"]) == (0.3, 0.9)
    assert until(lambda: stored(server))[0].messages == messages


def test_sampling_of_the_request_wins_over_that_of_its_role(serve, upstream):
    server = serve(roles={"primary": {"temperature": 0.3}})
    chat(server, "capital of France?", temperature=1.5).raise_for_status()
    assert upstream.requests[0]["temperature"] == 1.5


def test_named_role_is_asked_in_its_own_words(serve, upstream):
    server = serve(roles={"specialist": {"system_prompt": "You write code."}})
    chat(server, "Hello!", model="specialist").raise_for_status()
    assert upstream.requests[0]["messages"][0] == {"role": "system", "content": "You write code."}


def test_role_that_no_endpoint_serves_says_what_to_do(serve, upstream):
    web_roles = ["primary", "coordinator", "specialist"]
    server = serve(endpoint(upstream, "up", roles=web_roles), roles={"poet": {"good_at": ["conversation"]}})
    with pytest.raises(openai.NotFoundError, match=r"The role 'poet' has no endpoint\. Add it to `roles` of one of"):
        server.client().chat.completions.create(model="poet", messages=[{"role": "user", "content": "Hi"}])
    assert stored(server) == []
    told = trace_of(server, chat(server, "Hello! How are you?"))
    assert (told["kind"], told["role"]) == ("conversation", "primary")
    assert "the poet, which is good at conversation, has no endpoint" in told["reason"]


def test_only_role_of_a_name_that_is_good_at_it_is_asked(three_models, upstream):
    server = three_models()
    assert trace_of(server, chat(server, "Write a Python function that adds."))["role"] == "specialist"
    assert upstream.requests[0]["model"] == "org/two"


def test_coordinator_decides_where_the_rules_cannot_read_the_question(three_models, upstream):
    server = three_models()
    upstream.script.append(Behaviour(answer='{"role": "specialist"}'))
    response = chat(server, ODD)
    told = trace_of(server, response)
    assert purposes(told) == ["decide", "answer"]
    assert [request["model"] for request in upstream.requests] == ["org/one", "org/two"]
    assert (told["role"], told["model_calls"]) == ("specialist", 2)
    assert "the coordinator chose the specialist" in told["reason"]
    assert response.json()["usage"]["completion_tokens"] == 2 + 6
    assert upstream.requests[0]["response_format"]["type"] == "json_schema"
    assert "response_format" not in upstream.requests[1]


def test_coordinator_that_talks_nonsense_is_asked_once_more_and_then_the_rules_decide(three_models, upstream):
    server = three_models()
    upstream.script.extend([Behaviour(answer="Well, hard to say.")] * 2)
    told = trace_of(server, chat(server, ODD))
    assert purposes(told) == ["decide", "decide", "answer"]
    assert told["role"] == "primary"
    assert told["notes"] == ["the coordinator gave no decision that can be used, so the rules decided"]


def test_coordinator_is_not_asked_when_the_settings_say_so(three_models, upstream):
    server = three_models(swarm={"ask_coordinator": False})
    assert purposes(trace_of(server, chat(server, ODD))) == ["answer"]
    assert len(upstream.requests) == 1


def test_coordinator_is_not_asked_where_all_roles_are_one_model(server, upstream):
    assert purposes(trace_of(server, chat(server, ODD))) == ["answer"]
    assert len(upstream.requests) == 1


def test_coordinator_who_chooses_another_role_does_not_pass_tools_on_to_it(serve, upstream):
    models = {"primary": "org/model", "coordinator": "org/one", "specialist": "org/two"}
    server = serve(
        *[endpoint(upstream, role, model=model, roles=[role]) for role, model in models.items()],
        tools={"lab": {"command": [sys.executable, str(TOOL_SERVER)]}},
        roles={"specialist": {"tools": ["lab"]}},
    )
    until(lambda: server.app.state.swarm.servers.by_server().get("lab"), what="the server of tools")
    question = f"Plan my week, then write a Python function. {WEATHER}"
    upstream.script.append(Behaviour(answer='{"role": "specialist"}'))
    assert trace_of(server, chat(server, question))["role"] == "specialist"
    assert "tools" in upstream.requests[-1]
    upstream.script.append(Behaviour(answer='{"role": "coordinator"}'))
    assert trace_of(server, chat(server, f"{question} Thanks!"))["role"] == "coordinator"
    assert "tools" not in upstream.requests[-1]
