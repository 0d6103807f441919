"""What Prometheus reads of the gateway, and that its linter would be content."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.metrics import OUTCOMES, GatewayMetrics, QuotaLeft

OURS = "everswarm_gateway_"
ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
NOT_BASE_UNITS = {"milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days", "weeks", "kilobytes"}
TYPE_WORDS = {"counter", "gauge", "histogram", "summary"}


@pytest.fixture
def metrics() -> GatewayMetrics:
    """One of each."""
    counted = GatewayMetrics(
        waiting=lambda: {Priority.BATCH: 2},
        running=lambda: {"hf": 3},
        breaker_open=lambda: {"hf": False, "ollama": True},
        quota_left=lambda: [QuotaLeft("hf", "tokens", 3600.0, 29_000), QuotaLeft("hf", "requests", 0.5, 4)],
    )
    counted.count(
        "answered",
        "hf",
        prompt_tokens=100,
        completion_tokens=50,
        latency_seconds=0.7,
        queue_seconds=0.01,
        price_usd=0.25,
    )
    return counted


def samples(metrics: GatewayMetrics) -> dict[tuple[str, ...], float]:
    """Values by name without prefix, then the label values in order of label."""
    return {
        (sample.name.removeprefix(OURS), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().body.decode())
        for sample in family.samples
    }


def test_answer_is_counted_with_its_tokens_price_and_time(metrics):
    found = samples(metrics)
    assert found["requests_total", "hf", "answered"] == 1
    assert found["tokens_total", "hf", "prompt"] == 100
    assert found["tokens_total", "hf", "answer"] == 50
    assert found["price_usd_total", "hf"] == 0.25
    assert found["seconds_count", "hf"] == 1
    assert found["seconds_sum", "hf"] == 0.7
    assert found["seconds_bucket", "hf", "0.5"] == 0
    assert found["seconds_bucket", "hf", "1.0"] == found["seconds_bucket", "hf", "+Inf"] == 1
    assert found["queue_seconds_count", "interactive"] == 1


def test_present_values_are_asked_for_at_the_scrape(metrics):
    found = samples(metrics)
    assert found["waiting", "batch"] == 2
    assert found["running", "hf"] == 3
    assert (found["breaker_open", "hf"], found["breaker_open", "ollama"]) == (0, 1)
    assert found["quota_left", "hf", "tokens", "3600"] == 29_000
    assert found["quota_left", "hf", "requests", "0.5"] == 4


def test_long_window_is_written_as_whole_seconds():
    found = samples(GatewayMetrics(quota_left=lambda: [QuotaLeft("hf", "tokens", 2_592_000.0, 1)]))
    assert found["quota_left", "hf", "tokens", "2592000"] == 1


@pytest.mark.parametrize("outcome", ["cached", "shared", "refused"])
def test_request_that_no_endpoint_worked_for_uses_no_tokens(outcome):
    metrics = GatewayMetrics()
    metrics.count(outcome, "hf", prompt_tokens=9, completion_tokens=9, latency_seconds=1, price_usd=1)
    found = samples(metrics)
    assert found["requests_total", "hf", outcome] == 1
    assert found["tokens_total", "hf", "prompt"] == found["tokens_total", "hf", "answer"] == 0
    assert found["price_usd_total", "hf"] == found["seconds_count", "hf"] == 0


def test_cut_stream_counts_tokens_and_first_piece_but_no_whole_answer():
    metrics = GatewayMetrics()
    metrics.count("cut", "hf", prompt_tokens=5, completion_tokens=7, latency_seconds=3, first_piece_seconds=0.2)
    found = samples(metrics)
    assert found["tokens_total", "hf", "answer"] == 7
    assert found["first_piece_seconds_count", "hf"] == 1
    assert found["seconds_count", "hf"] == 0


def test_unknown_numbers_and_no_endpoint_are_counted_as_a_request_only():
    metrics = GatewayMetrics()
    metrics.count("refused", None, queue_seconds=20.0, priority=Priority.DEVICE)
    metrics.count("answered", "hf")
    found = samples(metrics)
    assert found["requests_total", "", "refused"] == 1
    assert found["queue_seconds_sum", "device"] == 20
    assert found["requests_total", "hf", "answered"] == 1
    assert found["tokens_total", "hf", "prompt"] == 0


def test_samples_on_a_bound_and_over_all_bounds_fall_in_the_right_buckets():
    metrics = GatewayMetrics()
    for seconds in (0.05, 120.0, 120.1):
        metrics.count("answered", "hf", latency_seconds=seconds)
    found = samples(metrics)
    bucket = [found["seconds_bucket", "hf", bound] for bound in ("0.05", "60.0", "120.0", "+Inf")]
    assert bucket == [1, 1, 2, 3]


def test_outcomes_not_met_yet_are_shown_as_zero(metrics):
    found = samples(metrics)
    assert {outcome: found["requests_total", "hf", outcome] for outcome in OUTCOMES} == {
        outcome: float(outcome == "answered") for outcome in OUTCOMES
    }


def test_name_of_an_endpoint_cannot_break_the_text():
    metrics = GatewayMetrics()
    metrics.count("answered", 'a "b"\n\\c 日本')
    assert samples(metrics)["requests_total", 'a "b"\n\\c 日本', "answered"] == 1


def test_two_gateways_share_nothing_and_the_global_registry_stays_as_it_is(metrics):
    other = GatewayMetrics()
    metrics.render()
    assert ("requests_total", "hf", "answered") not in samples(other)
    assert not any(family.name.startswith(OURS) for family in REGISTRY.collect())


def test_openmetrics_is_given_to_who_asks_for_it(metrics):
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    page = metrics.render(accept)
    assert page.content_type.startswith("application/openmetrics-text")
    assert page.body.endswith(b"# EOF\n")
    names = {family.name for family in openmetrics_families(page.body.decode())}
    assert f"{OURS}requests" in names


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=x", "text/html, */*;q=0.1"])
def test_everyone_else_gets_the_plain_text_format(metrics, accept):
    page = metrics.render(accept)
    assert page.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert page.body.endswith(b"\n")
    assert b"# EOF" not in page.body


def test_process_numbers_are_on_the_same_page(metrics):
    assert b"python_info{" in metrics.render().body


def test_library_is_not_imported_before_the_first_scrape():
    code = (
        "import sys; from everswarm.server.gateway.metrics import GatewayMetrics as M; m = M(); "
        "m.count('answered', 'x'); assert 'prometheus_client' not in sys.modules; m.render()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def lint_of(name: str, kind: str, about: str, labels: set[str]) -> list[str]:
    """Return what `promtool check metrics` would say; its rules are those of promlint in client_golang."""
    words = name.split("_")
    rules = {
        "no help text": not about,
        "counters end in _total, others do not": (kind == "counter") != name.endswith("_total"),
        "_count, _sum and _bucket belong to histograms": name.endswith(("_count", "_sum", "_bucket")),
        "le and quantile are reserved labels": bool(labels & {"le", "quantile"}),
        "the type is not part of the name": bool(set(words) & TYPE_WORDS),
        "no colons, no capitals": not all(re.fullmatch(r"[a-z_][a-z0-9_]*", text) for text in {name, *labels}),
        "no abbreviated units": bool(set(words[1:]) & ABBREVIATIONS),
        "base units only": bool(set(words) & NOT_BASE_UNITS),
    }
    return [f"{name}: {rule}" for rule, broken in rules.items() if broken]


def test_names_satisfy_the_linter_of_prometheus(metrics):
    metrics.count("answered", "hf", first_piece_seconds=0.1)
    families = [
        family
        for family in text_string_to_metric_families(metrics.render().body.decode())
        if family.name.startswith(OURS)
    ]
    assert len(families) == 10
    assert all(family.samples for family in families)
    problems = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        problems += lint_of(name, family.type, family.documentation, labels - {"le"} if "seconds" in name else labels)
    assert not problems


def test_linter_sees_what_it_should():
    assert lint_of("everswarm_jobs", "counter", "x", set())
    assert lint_of("everswarm_wait_ms", "gauge", "x", set())
    assert lint_of("everswarm_wait_seconds", "gauge", "", set())
    assert lint_of("everswarm_wait_seconds", "gauge", "x", {"userId"})
