"""Strategies over HTTP: what a reader gets, what it costs, what is refused."""

from __future__ import annotations

import json

import pytest
from tests.fakes.upstream import Behaviour
from tests.flow.served_gateway import until
from tests.server.batches.serving import json_lines, request_line
from tests.server.swarm_turns.asking import (
    ANSWER,
    APPLES,
    LISTED,
    MULTIPLY,
    chat,
    endpoint,
    events_of,
    leave_when,
    purposes,
    said,
    statuses,
    stored,
    strategy,
    trace,
    trace_of,
)

from everswarm.server.gateway.tables import usage
from everswarm.settings import QuotaSettings


@pytest.mark.parametrize("stream", [False, True])
def test_sum_is_calculated_without_a_model(server, upstream, stream):
    response = chat(server, "What is 37*48+5?", stream=stream)
    told = trace_of(server, response)
    assert "1781" in response.text
    assert response.headers["X-Everswarm-Strategy"] == "calculate"
    assert upstream.requests == []
    assert (told["strategy"], told["model_calls"], told["prompt_tokens"]) == ("calculate", 0, 0)
    assert stored(server)[0].response == "37*48+5 = 1781"


def test_batch_costs_no_tokens_for_sums(server, upstream):
    client = server.client()
    lines = [
        request_line("sum", messages=[{"role": "user", "content": "What is 37*48+5?"}]),
        request_line("words", messages=[{"role": "user", "content": "capital of France?"}]),
    ]
    given = client.files.create(file=("in.jsonl", json_lines(*lines)), purpose="batch")
    batch = client.batches.create(input_file_id=given.id, endpoint="/v1/chat/completions", completion_window="24h")
    done = until(lambda: found if (found := client.batches.retrieve(batch.id)).status == "completed" else None)
    answers = {
        line["custom_id"]: line["response"]["body"]
        for line in map(json.loads, client.files.content(done.output_file_id).text.splitlines())
    }
    assert answers["sum"]["choices"][0]["message"]["content"] == "37*48+5 = 1781"
    assert answers["sum"]["usage"]["total_tokens"] == 0
    assert answers["words"]["choices"][0]["message"]["content"] == ANSWER
    assert len(upstream.requests) == 1
    assert stored(server) == [], "a request of a batch is no interaction"


def test_vote_asks_twice_when_they_agree_and_its_usage_is_that_of_both(server, upstream):
    upstream.behaviour = Behaviour(answer="He has 7 apples.")
    response = chat(server, APPLES, headers=strategy("vote"))
    told = trace_of(server, response)
    assert said(response) == "He has 7 apples."
    assert purposes(told) == ["vote", "vote", "check"]
    assert told["steps"][-1]["detail"] == "two of 2 say 7"
    assert len(upstream.requests) == told["model_calls"] == 2
    cost = response.json()["usage"]
    assert (cost["prompt_tokens"], cost["completion_tokens"]) == (2 * 14, 2 * 4)
    assert sum(row.completion_tokens for row in until(lambda: stored(server, usage))) == 8
    (row,) = stored(server)
    assert (row.prompt_tokens, row.completion_tokens) == (28, 8)


def test_status_reaches_a_streaming_reader_before_the_answer(server, upstream):
    upstream.script.extend([Behaviour(answer="It is 7."), Behaviour(answer="It is 8."), Behaviour(answer="It is 7.")])
    options = {"include_usage": True}
    events = events_of(chat(server, APPLES, headers=strategy("vote"), stream=True, stream_options=options))
    assert statuses(events) == ["the answers differ; one more is asked for"]
    first_data = next(number for number, event in enumerate(events) if event.startswith("data:"))
    assert events.index(next(event for event in events if event.startswith(": everswarm"))) < first_data
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 9


def test_status_comes_while_the_answer_is_still_being_made(server, upstream):
    upstream.script.extend([Behaviour(), Behaviour(), Behaviour(delay_seconds=600)])
    body = {"messages": [{"role": "user", "content": LISTED}], "stream": True}
    with (
        server.http() as http,
        http.stream("POST", "/v1/chat/completions", json=body, headers=strategy("split")) as response,
    ):
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix(": everswarm")) == {"status": "2 parts are answered"}
        until(lambda: len(upstream.requests) == 3, what="the last call")
    assert upstream.reader_left.wait(30)


def test_openai_client_ignores_statuses(server, upstream):
    upstream.script.extend([Behaviour(answer="The Seine."), Behaviour(answer="The Ebro.")])
    upstream.behaviour = Behaviour(answer="The Seine and the Ebro.")
    stream = server.client().chat.completions.create(
        model="everswarm",
        messages=[{"role": "user", "content": LISTED}],
        stream=True,
        extra_headers=strategy("split"),
    )
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == "The Seine and the Ebro."


def test_split_answers_parts_side_by_side_and_puts_them_together(server, upstream):
    upstream.script.extend([Behaviour(answer="The Seine."), Behaviour(answer="The Ebro.")])
    upstream.behaviour = Behaviour(answer="The Seine and the Ebro.")
    response = chat(server, LISTED, headers=strategy("split"))
    told = trace_of(server, response)
    assert said(response) == "The Seine and the Ebro."
    assert purposes(told) == ["part", "part", "assemble"]
    together = upstream.requests[-1]["messages"][-1]["content"]
    assert "The Seine." in together
    assert "The Ebro." in together
    assert told["prompt_tokens"] + told["completion_tokens"] <= told["worst_case_tokens"]
    (row,) = stored(server)
    assert row.messages == [{"role": "user", "content": LISTED}]


@pytest.mark.parametrize("stream", [False, True])
def test_cascade_asks_the_second_model_when_the_first_refuses(three_models, upstream, stream):
    server = three_models()
    upstream.script.append(Behaviour(answer="I cannot help with that."))
    response = chat(server, "Explain why the sky is blue.", headers=strategy("cascade"), stream=stream)
    told = trace_of(server, response)
    assert "Paris" in response.text
    assert told["role"] == "specialist"
    assert (purposes(told)[0], purposes(told)[-1]) == ("answer", "escalation")
    assert [upstream.requests[0]["model"], upstream.requests[-1]["model"]] == ["org/model", "org/two"]


@pytest.mark.parametrize(("verdict", "role"), [("YES", "primary"), ("NO", "specialist")])
def test_cascade_has_the_second_model_check_what_no_rule_can(three_models, upstream, verdict, role):
    server = three_models()
    upstream.script.extend([Behaviour(answer="It is blue because of the sea."), Behaviour(answer=verdict)])
    body = {"headers": strategy("cascade"), "stream": True}
    before = "It was a fine day at the sea, and the children looked up. " * 40  # a check reads none of it: it is cheap
    turns = [{"role": "user", "content": before}, {"role": "assistant", "content": "How nice."}]
    question = {"role": "user", "content": "Explain why the sky is blue."}
    response = chat(server, "", **body, messages=[*turns, question])
    told = trace_of(server, response)
    assert told["role"] == role
    assert purposes(told)[:3] == ["answer", "check", "check"]
    assert told["steps"][2]["role"] == "specialist"
    assert statuses(events_of(response))[0] == "the specialist is checking"
    assert told["model_calls"] == len(upstream.requests) == (2 if role == "primary" else 3)


def test_synthesise_writes_one_answer_of_several_drafts(server, upstream):
    drafts = [Behaviour(answer=f"Draft {number}.") for number in range(3)]
    upstream.script.extend([*drafts, Behaviour(answer="The best of all.")])
    response = chat(server, "Describe the sea.", headers=strategy("synthesise"), max_tokens=40)
    assert said(response) == "The best of all."
    assert purposes(trace_of(server, response)) == ["draft", "draft", "draft", "write"]
    shown = upstream.requests[-1]["messages"][-1]["content"]
    assert all(f"Draft {number}." in shown for number in range(3))


def test_unknown_strategy_is_refused(server, upstream):
    response = chat(server, "Hi there", headers=strategy("debate"))
    assert response.status_code == 422
    assert "X-Everswarm-Strategy is auto, calculate, single" in response.text
    assert upstream.requests == []
    assert stored(server) == []


@pytest.mark.parametrize(
    "fields", [{"tools": [MULTIPLY]}, {"n": 2}, {"logprobs": True}], ids=["tools", "n", "logprobs"]
)
def test_strategy_of_several_calls_is_refused_where_one_call_has_to_answer(server, upstream, fields):
    response = chat(server, APPLES, headers=strategy("vote"), **fields)
    assert response.status_code == 422
    assert "vote cannot be used with tools, functions, logprobs or n > 1" in response.text
    assert upstream.requests == []


@pytest.mark.parametrize("text", ["What is 37*48+5?", "What day is it today?", "What do my notes say about tea?"])
def test_request_with_tools_of_its_own_is_passed_on_untouched(server, upstream, text):
    fields = {"tools": [MULTIPLY], "tool_choice": "auto", "temperature": 0.5}
    response = chat(server, text, model="everswarm", **fields)
    assert said(response) == ANSWER
    (asked,) = upstream.requests
    assert asked == {
        "model": "org/model",
        "messages": [{"role": "user", "content": text}],
        "stream": False,
        **fields,
    }
    assert trace_of(server, response)["strategy"] == "single"


@pytest.mark.parametrize("stream", [False, True])
def test_reader_who_leaves_a_vote_ends_every_call_and_gives_all_reservations_back(serve, upstream, stream):
    server = serve(endpoint(upstream, "up", quota=QuotaSettings(tokens_per_minute=1_000_000)))
    upstream.behaviour = Behaviour(first_byte_seconds=600)
    leave_when(server, lambda: len(upstream.requests) == 2, APPLES, headers=strategy("vote"), stream=stream)
    (row,) = until(lambda: stored(server), what="the interaction")
    assert row.state == "cut"
    calls = until(lambda: rows if len(rows := stored(server, usage)) == 2 else None, what="the usage of both calls")
    assert {call.outcome for call in calls} == {"cut"}
    assert until(lambda: server.held() == 0, what="the end of all reservations")
    told = trace(server, row.id)
    assert [(step["purpose"], step["outcome"]) for step in told["steps"]] == [("vote", "cut")] * 2
    assert len(upstream.requests) == 2


def test_vote_that_the_quota_does_not_allow_becomes_single_and_says_so(serve, upstream):
    server = serve(endpoint(upstream, "up", quota=QuotaSettings(tokens_per_minute=300)))
    response = chat(server, APPLES, headers=strategy("vote"), max_tokens=100)
    told = trace_of(server, response)
    assert (told["strategy"], told["wished_strategy"], told["model_calls"]) == ("single", "vote", 1)
    assert told["notes"][0].startswith("vote became single:")
