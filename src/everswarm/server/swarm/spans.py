"""OpenTelemetry spans of answers, by the semantic conventions for generative AI (`gen_ai.*`).

They are made from the finished trace, so that an answer costs nothing more while nobody listens. They go where the
SDK sends them: install `everswarm[otel]` and set OTEL_EXPORTER_OTLP_ENDPOINT. Texts are never in them.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from everswarm.server.swarm.trace import Step, Traced, is_model_call

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SYSTEM = "everswarm"
_log = logging.getLogger(__name__)


def open_tracer() -> Tracer | None:
    """Return what makes spans; None where nobody asked for them (no OTEL_EXPORTER_OTLP_ENDPOINT)."""
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, and no spans are sent: pip install 'everswarm[otel]'")
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": SYSTEM}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer: Tracer = provider.get_tracer(SYSTEM)
    return tracer


def emit(tracer: Tracer, traced: Traced, *, interaction_id: str) -> None:
    """Make the spans of one answer that is over: one for the whole, one for each call of a model or a tool."""
    from opentelemetry.trace import set_span_in_context

    offset = time.time() - time.monotonic()
    whole = tracer.start_span(
        f"invoke_agent {SYSTEM}",
        start_time=_nanoseconds(traced.started, offset),
        attributes={
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.provider.name": SYSTEM,
            "gen_ai.agent.name": SYSTEM,
            "gen_ai.response.id": interaction_id,
            "gen_ai.usage.input_tokens": traced.prompt_tokens,
            "gen_ai.usage.output_tokens": traced.completion_tokens,
            "everswarm.kind": traced.kind,
            "everswarm.strategy": traced.strategy,
        },
    )
    context = set_span_in_context(whole)
    for step in traced.steps:
        if not (step.tool or is_model_call(step)):
            continue
        span = tracer.start_span(
            _name(step),
            context=context,
            start_time=_nanoseconds(step.started, offset),
            attributes=_attributes(step),
        )
        span.end(_nanoseconds(step.ended or time.monotonic(), offset))
    whole.end()


def _name(step: Step) -> str:
    return f"execute_tool {step.tool}" if step.tool else f"chat {step.model or step.role}"


def _attributes(step: Step) -> dict[str, Any]:
    if step.tool:
        told: dict[str, Any] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": step.tool}
    else:
        told = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": SYSTEM,
            "gen_ai.response.model": step.model,
            "gen_ai.usage.input_tokens": step.prompt_tokens,
            "gen_ai.usage.output_tokens": step.completion_tokens,
            "everswarm.role": step.role,
            "everswarm.endpoint": step.endpoint,
            "everswarm.cached": step.cached,
        }
    told |= {"everswarm.purpose": step.purpose, "error.type": None if step.outcome == "done" else step.outcome}
    return {name: value for name, value in told.items() if value is not None}


def _nanoseconds(moment: float, offset: float) -> int:
    """Return a moment of the monotonic clock as Unix nanoseconds."""
    return int((moment + offset) * 1e9)
