"""From what was measured to the rows of the report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.gateway.litellm import VERSION
from benchmarks.gateway.rounds import ALONE, HIT, MISS, OPEN, PACED, STREAM, Measured, Plan, Scenario
from benchmarks.report import Row

NO_PEER = f"not measured in this run: needs --litellm (litellm[proxy] {VERSION}, in its own environment)"
NO_MEMORY = "not measured in this run: takes 100k requests"
SLOPE_LIMIT_MB = 2.0  # of the last half; what the allocator gives and takes is about that


def rows_of(measured: Measured, plan: Plan) -> list[Row]:
    """Return the rows of the table, then those that explain them."""
    return [
        *_cost_rows(measured),
        _orchestration_row(measured),
        *_latency_and_cache_rows(measured),
        *_memory_rows(measured, plan),
        _row("server listens", "CPU-s", measured.start_cpu_seconds, 3.0, 1.5, "serve --no-worker, at its first answer"),
        *_context_rows(measured),
    ]


def _cost_rows(measured: Measured) -> list[Row]:
    request, stream = measured.cpu_ms(MISS, "everswarm"), measured.cpu_ms(STREAM, "everswarm")
    how = "CPU of all its processes / requests; one worker, cache miss, two endpoints with quotas, calls stored; "
    rows = [
        _row("CPU per request", "ms", request, 0.45, 0.25, how + "32 connections"),
        _peer_row("CPU per request / LiteLLM", measured, MISS, must=1 / 35, reach=1 / 60),
        _row("CPU per 64-chunk stream", "ms", stream, 1.5, 0.8, how + "8 connections, chunks at once"),
        _peer_row("CPU per 64-chunk stream / LiteLLM", measured, STREAM, must=1 / 40, reach=None),
    ]
    how = "raw ASGI + aiohttp, bytes passed on, the same uvicorn; "
    for scenario, what, must, reach in ((MISS, "request", 1.9, 1.3), (STREAM, "64-chunk stream", None, None)):
        ratios = measured.cpu_ratios(scenario, "everswarm", "bare")
        its = f"it takes {statistics.median(measured.cpu_ms(scenario, 'bare')):.3f} ms"
        rows.append(_row(f"CPU per {what} / bare pass-through", "x", ratios, must, reach, how + its))
    return rows


def _orchestration_row(measured: Measured) -> Row:
    bare, swarm = measured.orchestration_ms["gateway"], measured.orchestration_ms["swarm"]
    added = [ours - theirs for ours, theirs in zip(swarm, bare, strict=True)]
    how = f"`single`: who answers, and the trace, over Gateway.chat ({statistics.median(bare):.3f} ms), in one process"
    return _row("CPU that the swarm adds to one call", "ms", added, 0.3, None, how)


def _latency_and_cache_rows(measured: Measured) -> list[Row]:
    ratios = measured.p50_ratios(OPEN, "everswarm", "direct")
    hit = measured.cpu_ms(HIT, "everswarm")
    tokens = [float(sample.upstream_tokens) for sample in measured.samples[HIT.name, "everswarm"]]
    how = "open loop, 20 requests/s, each timed from when it was due; "
    others = "; ".join(
        f"{who} {statistics.median(measured.p50_ratios(OPEN, who, 'direct')):.3f}"
        for who in ("bare", "litellm")
        if measured.samples[OPEN.name, who]
    )
    return [
        _row("p50 through / direct, 20 ms upstream", "x", ratios, 1.15, 1.08, how + others),
        _row("CPU per cache hit", "ms", hit, 0.25, 0.12, "32 connections that ask the same at temperature 0"),
        _row("upstream tokens of cache hits", "tokens", tokens, 0.0, None, "counted by the mock"),
    ]


def _memory_rows(measured: Measured, plan: Plan) -> list[Row]:
    growth, slope = f"memory growth over idle, {Plan().memory_requests:,} requests", "memory slope in the last half"
    if not measured.memory_mb:
        return [
            Row(growth, None, "MB", 10.0, 3.0, "lower", NO_MEMORY),
            Row(slope, None, "MB", 2.0, None, "lower", NO_MEMORY),
        ]
    idle, most, last = measured.memory_mb[0], max(measured.memory_mb), measured.memory_mb[-1]
    how = f"{plan.memory_requests:,} cache misses; Pss {idle:.1f} MB at rest, {most:.1f} at most, {last:.1f} at the end"
    fit = f"straight line through {len(measured.memory_mb) // 2} samples of {plan.memory_requests // 2:,} requests"
    return [
        Row(growth, round(last - idle, 2), "MB", 10.0, 3.0, "lower", how),
        Row(slope, round(measured.memory_slope_mb(), 2), "MB", SLOPE_LIMIT_MB, None, "lower", fit),
    ]


def _context_rows(measured: Measured) -> list[Row]:
    """Return what the figures above are to be seen beside; nothing is asked of these but of the first."""
    per_second = round(measured.mock_requests_per_second)
    how = "both on one core, 32 connections: they are not what limits"
    rows = [Row("load generator against mock", per_second, "requests/s", 30_000, None, "higher", how)]
    for scenario, what in ((ALONE, "CPU per request, one connection"), (PACED, "CPU per stream, chunks 5 ms apart")):
        bare = f"bare pass-through {statistics.median(measured.cpu_ms(scenario, 'bare')):.3f} ms"
        how = f"connections: {scenario.connections}; {bare}"
        rows.append(_row(what, "ms", measured.cpu_ms(scenario, "everswarm"), None, None, how))
    return rows


def _peer_row(metric: str, measured: Measured, scenario: Scenario, *, must: float, reach: float | None) -> Row:
    must, reach = round(must, 4), reach and round(reach, 4)
    if not measured.samples[scenario.name, "litellm"]:
        return Row(metric, None, "x", must, reach, "lower", NO_PEER)
    its = f"litellm[proxy] {VERSION} takes {statistics.median(measured.cpu_ms(scenario, 'litellm')):.2f} ms"
    return _row(metric, "x", measured.cpu_ratios(scenario, "everswarm", "litellm"), must, reach, its)


def _row(metric: str, unit: str, values: Sequence[float], must: float | None, reach: float | None, how: str) -> Row:
    """Return a row of the median of `values`; `how` says between what they lie."""
    spread = f"; median of {len(values)}, {min(values):.4g} to {max(values):.4g}"
    return Row(metric, round(statistics.median(values), 4), unit, must, reach, "lower", how + spread)
