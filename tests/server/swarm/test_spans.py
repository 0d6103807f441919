"""Spans of answers, as the SDK of OpenTelemetry exports them."""

from __future__ import annotations

import logging
import sys
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everswarm.server.gateway import Answered
from everswarm.server.swarm.spans import emit, open_tracer
from everswarm.server.swarm.trace import Traced

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SECRET = "the secret of the question"


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("everswarm")


@pytest.fixture
def traced():
    """An answer of one model call, one tool and one free check."""
    trace = Traced("mathematics", "vote", SECRET)
    asked = trace.begin("vote", "specialist", SECRET)
    asked.answered(Answered("up", "org/model", "specialist", {}))
    asked.count({"prompt_tokens": 12, "completion_tokens": 3})
    asked.end()
    tool = trace.begin("tool")
    tool.tool, tool.arguments = "clock", {"zone": SECRET}
    tool.end("failed", SECRET)
    trace.found("check", SECRET)
    return trace


def test_each_call_of_a_model_or_a_tool_is_a_span_below_that_of_the_answer(tracer, exporter, traced):
    emit(tracer, traced, interaction_id="i-1")
    model, tool, whole = exporter.get_finished_spans()
    assert [span.name for span in (whole, model, tool)] == [
        "invoke_agent everswarm",
        "chat org/model",
        "execute_tool clock",
    ]
    assert whole.parent is None
    assert model.parent.span_id == tool.parent.span_id == whole.context.span_id
    assert {span.context.trace_id for span in (model, tool)} == {whole.context.trace_id}


def test_spans_have_the_attributes_of_the_conventions(tracer, exporter, traced):
    emit(tracer, traced, interaction_id="i-1")
    model, tool, whole = exporter.get_finished_spans()
    assert dict(whole.attributes) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "everswarm",
        "gen_ai.agent.name": "everswarm",
        "gen_ai.response.id": "i-1",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "everswarm.kind": "mathematics",
        "everswarm.strategy": "vote",
    }
    assert dict(model.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "everswarm",
        "gen_ai.response.model": "org/model",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 3,
        "everswarm.role": "specialist",
        "everswarm.endpoint": "up",
        "everswarm.cached": False,
        "everswarm.purpose": "vote",
    }
    assert dict(tool.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "clock",
        "everswarm.purpose": "tool",
        "error.type": "failed",
    }


def test_no_text_is_in_a_span(tracer, exporter, traced):
    emit(tracer, traced, interaction_id="i-1")
    assert SECRET not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_span_of_a_step_lies_within_that_of_the_answer_and_at_the_time_of_day(tracer, exporter, traced):
    before = time.time_ns() - 10**9
    emit(tracer, traced, interaction_id="i-1")
    model, tool, whole = exporter.get_finished_spans()
    assert before < whole.start_time <= model.start_time <= model.end_time <= tool.end_time <= whole.end_time
    assert model.end_time - model.start_time == pytest.approx(
        (traced.steps[0].ended - traced.steps[0].started) * 1e9, abs=10**6
    )


def test_call_that_never_came_to_its_end_is_an_error(tracer, exporter):
    trace = Traced("other", "single", "")
    trace.begin("answer", "primary")
    emit(tracer, trace, interaction_id="i-1")
    call, whole = exporter.get_finished_spans()
    assert call.name == "chat primary"
    assert call.attributes["error.type"] == "cut"
    assert "gen_ai.response.model" not in call.attributes
    assert call.end_time <= whole.end_time


def test_nothing_is_traced_where_nobody_asks_for_it(monkeypatch):
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert open_tracer() is None


@pytest.mark.parametrize("variable", ENDPOINTS)
def test_variable_opens_the_tracer(monkeypatch, variable):
    monkeypatch.setenv(variable, "http://127.0.0.1:9/v1/traces")
    assert open_tracer() is not None


def test_missing_library_is_told_and_nothing_else_happens(monkeypatch, caplog):
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        assert open_tracer() is None
    assert "pip install 'everswarm[otel]'" in caplog.text
