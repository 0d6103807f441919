"""What Prometheus may know of the gateway: counts, tokens, seconds and prices by endpoint; never users, never texts.

Counting is plain arithmetic on the event loop; the Prometheus library is first imported at a scrape. Its own counters
take a lock each; a request would cost 3.8 us where it costs 0.8 us here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from everswarm.schemas.gateway import Priority

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

Outcome = Literal["answered", "cached", "shared", "cut", "failed", "refused"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "cached", "shared", "cut", "failed", "refused")
BUCKETS_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
NO_ENDPOINT = ""  # to Prometheus the same as no label
_UPSTREAM: frozenset[Outcome] = frozenset(("answered", "cut", "failed"))  # an endpoint worked for it
_TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "everswarm_gateway_"
_OPENMETRICS = "application/openmetrics-text"


class QuotaLeft(NamedTuple):
    """What is left of one limit now."""

    endpoint: str
    unit: str  # tokens, requests
    window_seconds: float
    left: float


class Scrape(NamedTuple):
    """The answer to one `GET /metrics`."""

    body: bytes
    content_type: str


class _Histogram:
    """Counts by bucket, and their sum."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_SECONDS) + 1)  # the last: longer than every bound
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Add one sample."""
        self.counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.sum += seconds

    def cumulated(self) -> list[tuple[str, float]]:
        """Return (upper bound, samples up to it), as Prometheus wants them."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class _EndpointCounts:
    """The sums of one endpoint."""

    __slots__ = ("answer_tokens", "first_piece", "outcomes", "price_usd", "prompt_tokens", "seconds")

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self.prompt_tokens = 0
        self.answer_tokens = 0
        self.price_usd = 0.0
        self.seconds = _Histogram()
        self.first_piece = _Histogram()


def _nothing() -> dict[str, float]:
    return {}


class GatewayMetrics:
    """The numbers of one gateway, in a registry of its own. `count` belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        waiting: Callable[[], Mapping[str, float]] = _nothing,
        running: Callable[[], Mapping[str, float]] = _nothing,
        breaker_open: Callable[[], Mapping[str, float]] = _nothing,
        quota_left: Callable[[], Iterable[QuotaLeft]] = tuple,
    ) -> None:
        """Begin at zero. What has a present value is asked for at each scrape.

        Args:
            waiting: requests in line, by priority.
            running: calls in flight, by endpoint.
            breaker_open: whether it is not closed, by endpoint.
            quota_left: one for each limit of each endpoint.
        """
        self._endpoints: dict[str, _EndpointCounts] = {}
        self._queue = {priority: _Histogram() for priority in Priority}
        self._waiting, self._running, self._breaker_open = waiting, running, breaker_open
        self._quota_left = quota_left
        self._registry: CollectorRegistry | None = None

    def count(
        self,
        outcome: Outcome,
        endpoint: str | None,
        *,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        latency_seconds: float | None = None,
        first_piece_seconds: float | None = None,
        queue_seconds: float | None = None,
        priority: Priority = Priority.INTERACTIVE,
        price_usd: float = 0.0,
    ) -> None:
        """Count one request that is over. None is what is not known.

        Tokens and price count where an endpoint worked (answered, cut, failed), not for a cached or shared answer;
        the whole latency counts of whole answers only.

        Args:
            outcome: how it ended.
            endpoint: its name in the settings; None where no endpoint was asked.
            prompt_tokens: as the endpoint counted them.
            completion_tokens: likewise.
            latency_seconds: from the call upstream to the end of the answer.
            first_piece_seconds: from the call upstream to the first piece of a stream.
            queue_seconds: in line for a quota.
            priority: of the line.
            price_usd: of the call.
        """
        counts = self._endpoints.get(endpoint or NO_ENDPOINT)
        if counts is None:
            counts = self._endpoints[endpoint or NO_ENDPOINT] = _EndpointCounts()
        counts.outcomes[outcome] += 1
        if queue_seconds is not None:
            self._queue[priority].observe(queue_seconds)
        if outcome not in _UPSTREAM:
            return
        counts.prompt_tokens += prompt_tokens or 0
        counts.answer_tokens += completion_tokens or 0
        counts.price_usd += price_usd
        if latency_seconds is not None and outcome == "answered":
            counts.seconds.observe(latency_seconds)
        if first_piece_seconds is not None:
            counts.first_piece.observe(first_piece_seconds)

    def render(self, accept: str = "") -> Scrape:
        """Return all numbers, as OpenMetrics where the header `accept` names it, else as Prometheus text 0.0.4."""
        from prometheus_client import exposition
        from prometheus_client.openmetrics import exposition as openmetrics

        registry = self._registry = self._registry or self._new_registry()
        if _OPENMETRICS in accept.lower():
            body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return Scrape(body, openmetrics.CONTENT_TYPE_LATEST)
        return Scrape(exposition.generate_latest(registry), _TEXT_TYPE)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, for the registry."""
        endpoints = sorted(self._endpoints.items())
        yield from _counters(endpoints)
        whole = [(name, counts.seconds) for name, counts in endpoints]
        yield _histogram("seconds", "Whole answers: from call to end.", "endpoint", whole)
        first_pieces = [(name, counts.first_piece) for name, counts in endpoints]
        yield _histogram("first_piece_seconds", "Streams: from call to first piece.", "endpoint", first_pieces)
        yield _histogram("queue_seconds", "Time in line for a quota.", "priority", self._queue.items())
        yield _gauge("waiting", "Requests in line for a quota.", ("priority",), _by_name(self._waiting()))
        yield _gauge("running", "Calls in flight.", ("endpoint",), _by_name(self._running()))
        yield _gauge("breaker_open", "1 while calls rest.", ("endpoint",), _by_name(self._breaker_open()))
        quotas = [((q.endpoint, q.unit, f"{q.window_seconds:.15g}"), q.left) for q in self._quota_left()]
        yield _gauge("quota_left", "Left of a limit now.", ("endpoint", "unit", "window_seconds"), quotas)

    def _new_registry(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

        registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        registry.register(self)
        return registry


def _counters(endpoints: Sequence[tuple[str, _EndpointCounts]]) -> Iterator[Metric]:
    from prometheus_client.metrics_core import CounterMetricFamily

    requests = CounterMetricFamily(f"{PREFIX}requests", "Requests that are over.", labels=("endpoint", "outcome"))
    tokens = CounterMetricFamily(f"{PREFIX}tokens", "Tokens that endpoints used.", labels=("endpoint", "kind"))
    price = CounterMetricFamily(f"{PREFIX}price_usd", "Price of the calls in US dollars.", labels=("endpoint",))
    for name, counts in endpoints:
        for outcome, number in counts.outcomes.items():
            requests.add_metric((name, outcome), number)
        tokens.add_metric((name, "prompt"), counts.prompt_tokens)
        tokens.add_metric((name, "answer"), counts.answer_tokens)
        price.add_metric((name,), counts.price_usd)
    yield from (requests, tokens, price)


def _histogram(name: str, about: str, label: str, series: Iterable[tuple[str, _Histogram]]) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(PREFIX + name, about, labels=(label,))
    for value, histogram in series:
        family.add_metric((value,), buckets=histogram.cumulated(), sum_value=histogram.sum)
    return family


def _gauge(name: str, about: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(PREFIX + name, about, labels=labels)
    for values, sample in samples:
        family.add_metric(values, sample)
    return family


def _by_name(samples: Mapping[str, float]) -> list[tuple[Sequence[str], float]]:
    return [((name,), sample) for name, sample in samples.items()]
