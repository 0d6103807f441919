"""What the trace of an answer says, and to whom."""

from __future__ import annotations

import pytest
from tests.fakes.upstream import Behaviour
from tests.flow.served_gateway import until
from tests.server.batches.serving import json_lines
from tests.server.swarm_turns.asking import chat, get, leave_when, stored, trace, trace_of, user_key

from everswarm.server.feedback import import_file
from everswarm.server.swarm import service


def test_trace_names_who_answered_and_what_it_cost(server):
    told = trace_of(server, chat(server, "capital of France?"))
    (step,) = told["steps"]
    assert (told["kind"], told["strategy"], told["role"], told["model_calls"]) == ("other", "single", "primary", 1)
    assert (step["purpose"], step["role"], step["endpoint"], step["model"]) == ("answer", "primary", "up", "org/model")
    assert (step["prompt_tokens"], step["completion_tokens"], step["outcome"]) == (3, 6, "done")
    assert (told["prompt_tokens"], told["completion_tokens"]) == (3, 6)
    assert told["seconds"] >= step["seconds"] >= 0


def test_trace_of_another_users_answer_is_not_found_and_an_admin_sees_all(server):
    bob, eve = user_key(server, "bob"), user_key(server, "eve")
    path = f"/api/interactions/{chat(server, 'Hi there', key=bob).headers['X-Interaction-Id']}/trace"
    assert until(lambda: get(server, path, key=bob).status_code == 200)
    assert get(server, path, key=eve).status_code == 404
    assert get(server, path).status_code == 200
    assert get(server, "/api/interactions/unknown/trace").status_code == 404


def test_imported_interaction_has_no_trace(server, tmp_path):
    line = {"id": "i-1", "messages": [{"role": "user", "content": "Hi"}], "correction": "Hello", "device_id": "d"}
    (tmp_path / "feedback.jsonl").write_bytes(
        json_lines({**line, "timestamp": "2026-01-02T03:04:05Z", "consent": True})
    )
    assert import_file(server.app.state.database, tmp_path / "feedback.jsonl").stored == 1
    answer = get(server, "/api/interactions/i-1/trace")
    assert answer.status_code == 404
    assert "answered here" in answer.text


def test_trace_is_there_after_a_restart(server):
    response = chat(server, "What is 37*48+5?")
    before = trace_of(server, response)
    server.stop()
    server.start()
    assert trace_of(server, response) == before
    assert before["strategy"] == "calculate"


def test_failed_answer_has_a_trace_that_says_why(server, upstream):
    upstream.behaviour = Behaviour(status=500)
    assert chat(server, "capital of France?").status_code == 503
    (row,) = until(lambda: stored(server))
    told = trace(server, row.id)
    assert (row.state, told["steps"][0]["outcome"]) == ("failed", "failed")
    assert "No endpoint can answer" in told["steps"][0]["detail"]


@pytest.mark.parametrize("stream", [False, True])
def test_answer_whose_reader_left_has_a_trace(server, upstream, stream):
    upstream.behaviour = Behaviour(delay_seconds=30)
    leave_when(server, lambda: upstream.requests, "capital of France?", stream=stream)
    (row,) = until(lambda: stored(server))
    told = trace(server, row.id)
    assert (row.state, told["steps"][0]["outcome"]) == ("cut", "cut")


def test_every_answer_becomes_spans_where_somebody_listens(serve, monkeypatch):
    pytest.importorskip("opentelemetry.sdk", reason="needs everswarm[otel]")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(service, "open_tracer", lambda: provider.get_tracer("everswarm"))
    response = chat(serve(), "capital of France?")
    call, whole = until(exporter.get_finished_spans, what="the spans")
    assert whole.attributes["gen_ai.response.id"] == response.headers["X-Interaction-Id"]
    assert (call.name, call.attributes["gen_ai.usage.output_tokens"]) == ("chat org/model", 6)


def test_plain_call_stores_only_what_its_interaction_does_not_say(server):
    response = chat(server, "capital of France?")
    told = trace_of(server, response)
    (row,) = stored(server)
    assert row.trace == {"kind": "other", "strategy": "single", "reason": "anything else"}
    (step,) = told["steps"]
    assert (step["role"], step["endpoint"], step["model"]) == (row.role, row.endpoint, row.model)
    assert (told["model_calls"], told["prompt_tokens"]) == (1, row.prompt_tokens)
    assert told["completion_tokens"] == step["completion_tokens"] == row.completion_tokens > 0
