"""One call to one endpoint while it runs. However it ends, quota, balance, breaker and books are right after it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from everswarm.errors import EverswarmError, QuotaSpentError, UnavailableError
from everswarm.llm.upstream_errors import retry_after_seconds
from everswarm.server.gateway.balancing import comparable_seconds
from everswarm.server.gateway.calls import Call
from everswarm.server.gateway.endpoints import Endpoint
from everswarm.server.gateway.line import Line
from everswarm.server.gateway.metrics import GatewayMetrics, Outcome
from everswarm.server.gateway.quota import Reservation
from everswarm.server.gateway.quota_store import QuotaStore
from everswarm.server.gateway.rate_headers import read_corrections
from everswarm.server.gateway.usage import TokenCounts, Usage, estimate_answer_tokens, read_counts

_log = logging.getLogger(__name__)


class Books:
    """Where calls are accounted for."""

    def __init__(
        self, *, store: QuotaStore, line: Line, metrics: GatewayMetrics, record: Callable[[Usage], None] | None
    ) -> None:
        self.store = store
        self.line = line
        self.metrics = metrics
        self._record = record

    def enter(self, call: Call, usage: Usage, *, first_piece_seconds: float | None = None) -> None:
        """Count a call that is over, and store it where there is a place to."""
        self.metrics.count(
            usage.outcome,
            usage.endpoint,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            latency_seconds=usage.latency_seconds,
            first_piece_seconds=first_piece_seconds,
            queue_seconds=usage.queue_seconds,
            priority=call.priority,
            price_usd=usage.price_usd,
        )
        if self._record is not None:
            try:
                self._record(usage)
            except EverswarmError as error:  # too much waits to be stored; the answer and the quota come first
                _log.error("the usage of a call is not stored: %s", error)


class Running:
    """A call that may be sent: it holds its reservation, its place in the balance, and the probe of the breaker."""

    def __init__(
        self,
        books: Books,
        call: Call,
        *,
        endpoint: Endpoint,
        role: str | None,
        reservation: Reservation | None,
        prompt_tokens: int,
        is_repeated: bool = False,
    ) -> None:
        """The breaker has let it through. `prompt_tokens` is an estimate, for where the endpoint does not count."""
        self.endpoint = endpoint
        self.role = role
        self.heard: dict[str, str] = {}  # the headers of the answer
        self._books = books
        self._call = call
        self._reservation = reservation
        self._prompt_tokens = prompt_tokens
        self._started = time.monotonic()
        self._first_piece_seconds: float | None = None
        self._answer_tokens = 0  # estimate of what came
        self._counts: TokenCounts | None = None
        self._is_repeated = is_repeated
        self._is_over = False
        self._is_probe = endpoint.breaker.state != "closed"
        endpoint.load.begin()

    def take(self, answer: Mapping[str, Any]) -> None:
        """Gather what a completion, or a chunk of one, says of its size.

        Raises:
            UnavailableError: its choices are not what the protocol says.
        """
        choices = answer.get("choices")
        if not _is_readable(choices):
            raise UnavailableError(f"'{self.endpoint.name}' answered with choices that cannot be read.")
        if self._first_piece_seconds is None:
            self._first_piece_seconds = time.monotonic() - self._started
            if self._is_probe:
                self.endpoint.breaker.released()  # it answers; whether to the end is seen later
        usage = answer.get("usage")
        if usage is not None:
            self._counts = read_counts(usage) or self._counts
        elif self._counts is None:
            self._answer_tokens += estimate_answer_tokens(choices)

    def answered(self, *, streamed: bool) -> None:
        """The whole answer came."""
        if self._is_over:
            return
        seconds = time.monotonic() - self._started
        sample = self._first_piece_seconds or 0.0 if streamed else comparable_seconds(seconds, self._used().answer)
        self._end("answered", sample)
        self.endpoint.breaker.succeeded()
        self.endpoint.note_success()
        self._settle(self._used().total)

    def failed(self, error: EverswarmError) -> None:
        """The endpoint did not answer, or broke off."""
        if self._is_over:
            return
        self._end("failed", None)
        if not self._is_repeated:  # one request that fails again and again may be the request's fault
            self.endpoint.breaker.failed(retry_after_seconds=retry_after_seconds(self.heard))
        self.endpoint.note_failure(error)
        # what it did before it failed is not known; what was seen was spent
        self._settle(self._used().total if self._answer_tokens or self._counts else 0)

    async def refused(self, error: QuotaSpentError) -> None:
        """The endpoint says that its quota or its credit is spent: nobody asks before that is over."""
        if self._is_over:
            return
        self._end("refused", None)
        self.endpoint.note_failure(error)
        quota = self.endpoint.quota
        if quota is not None:
            seconds = retry_after_seconds(self.heard) or self.endpoint.closes_for_seconds(error)
            try:
                await self._books.store.close_key(quota.key, seconds=seconds, reason=str(error))
                await self.endpoint.look_at_quota(self._books.store)
            finally:
                self._cancel()

    def rejected(self) -> None:
        """The endpoint cannot use this payload: no fault of its own, and nothing spent."""
        if not self._is_over:
            self._end("refused", None)
            self._cancel()

    def cut(self) -> None:
        """The reader left: the work upstream ends, and what was done is spent."""
        if not self._is_over:
            self._end("cut", None)
            self._settle(self._used().total)

    def _used(self) -> TokenCounts:
        if self._counts is not None:
            return self._counts
        prompt, answer = self._prompt_tokens, self._answer_tokens
        return TokenCounts(prompt, answer, prompt + answer)

    def _end(self, outcome: Outcome, latency_sample: float | None) -> None:
        self._is_over = True
        self.endpoint.load.end(latency_sample)
        if self._is_probe:
            self.endpoint.breaker.released()
        call, counts, ticket = self._call, self._counts, self._call.ticket
        usage = Usage(
            endpoint=self.endpoint.name,
            role=self.role,
            model=self.endpoint.model,
            priority=call.priority.value,
            outcome=outcome,
            prompt_tokens=counts.prompt if counts else None,
            completion_tokens=counts.answer if counts else None,
            latency_seconds=round(time.monotonic() - self._started, 4),
            queue_seconds=round(ticket.queued_seconds, 3) if ticket else 0.0,
            price_usd=self.endpoint.price_usd(counts.prompt, counts.answer) if counts else 0.0,
            interaction_id=call.interaction_id,
        )
        self._books.enter(call, usage, first_piece_seconds=self._first_piece_seconds)

    def _settle(self, tokens: int) -> None:
        quota = self.endpoint.quota
        if quota is not None and self._reservation is not None:
            self._books.store.settle_soon(quota, self._reservation, tokens, read_corrections(self.heard))
            self._books.line.look()

    def _cancel(self) -> None:
        if self._reservation is not None:
            self._books.store.cancel_soon(self._reservation)
            self._books.line.look()


def _is_readable(choices: Any) -> bool:
    if not choices:
        return choices is None or isinstance(choices, list)
    return isinstance(choices, list) and all(
        isinstance(choice, dict)
        and isinstance(choice.get("index") or 0, int)
        and isinstance(said := choice.get("delta") or choice.get("message") or {}, dict)
        and _is_readable_calls(said.get("tool_calls") or [])
        for choice in choices
    )


def _is_readable_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("index") or 0, int) for call in calls
    )
