"""Sends a chat to an endpoint that serves what was asked for, and to the next one when that does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from random import Random
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from everswarm.errors import ConfigurationError, EverswarmError, QuotaSpentError, UnavailableError
from everswarm.llm.protocol import Chunk, Payload
from everswarm.schemas.gateway import Priority, QuotaView
from everswarm.server.gateway.backoff import pause_seconds
from everswarm.server.gateway.balancing import order
from everswarm.server.gateway.cache import AnswerCache, cache_key
from everswarm.server.gateway.calls import Answered, AnsweredStream, Call, most_answer_tokens
from everswarm.server.gateway.completions import as_chunks, assemble
from everswarm.server.gateway.endpoints import STARTING, Endpoint
from everswarm.server.gateway.line import Line, Ticket
from everswarm.server.gateway.metrics import GatewayMetrics, Outcome, QuotaLeft
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.gateway.quota_store import BEAT_SECONDS, QuotaStore, open_quota_store
from everswarm.server.gateway.refusals import empty, nobody_answers, resting
from everswarm.server.gateway.routing import Candidate, ServedModel, candidates, served_models
from everswarm.server.gateway.running import Books, Running
from everswarm.server.gateway.sharing import SharedCalls
from everswarm.server.gateway.shortage import find_shortage
from everswarm.server.gateway.table import open_endpoints
from everswarm.server.gateway.usage import Usage
from everswarm.settings import GatewaySettings, Settings

LONGEST_PAUSE_SECONDS = 10  # before all endpoints are tried once more; a longer one is for the caller to wait

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Gateway:
    """All endpoints of this server."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        store: QuotaStore,
        settings: GatewaySettings | None = None,
        cache: AnswerCache | None = None,
        record: Callable[[Usage], None] | None = None,
    ) -> None:
        """Serve `endpoints`; among those of one role the earlier is preferred where all else is equal.

        Args:
            endpoints: each under a name of its own.
            store: of their quotas, which other processes may share.
            settings: how requests wait, are retried and remembered.
            cache: of answers; none are remembered without it.
            record: is told what each call cost.

        Raises:
            ConfigurationError: two have one name.
        """
        names = [endpoint.name for endpoint in endpoints]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ConfigurationError(f"Two endpoints have the name '{double[0]}'. Give each [[endpoints]] its own.")
        self._endpoints = list(endpoints)
        self._roles = tuple(dict.fromkeys(role for endpoint in endpoints for role in endpoint.roles))
        self._any_quota = any(endpoint.quota is not None for endpoint in endpoints)
        self._settings = settings or GatewaySettings()
        self._store = store
        self.answer_cache = cache  # None: nothing is kept
        self._line = Line(store, length=self._settings.queue_length)
        self.metrics = GatewayMetrics(
            waiting=lambda: {priority.value: number for priority, number in self._line.waiting().items()},
            running=lambda: {endpoint.name: endpoint.load.running for endpoint in self._endpoints},
            breaker_open=lambda: {endpoint.name: endpoint.breaker.state != "closed" for endpoint in self._endpoints},
            quota_left=self._quota_left,
        )
        self._books = Books(store=store, line=self._line, metrics=self.metrics, record=record)
        self._shared = SharedCalls()
        self._random = Random()
        self._beating: asyncio.Task[None] | None = None

    @classmethod
    def from_settings(cls, settings: Settings, *, record: Callable[[Usage], None] | None = None) -> Gateway:
        """Return a gateway to the configured endpoints; where there are none, to the embedded engine.

        Raises:
            ConfigurationError: an endpoint cannot be used as it is written; names it.
        """
        kept = settings.gateway.cache
        cache_path = settings.home / "cache.sqlite"
        return cls(
            open_endpoints(settings),
            store=open_quota_store(home=settings.home, database_url=settings.database_url),
            settings=settings.gateway,
            cache=AnswerCache(cache_path, ttl_seconds=kept.ttl_seconds, size_bytes=kept.size_mb * 10**6)
            if kept.enabled and settings.feedback.raw_text != "none"  # an answer may hold what must not be stored
            else None,
            record=record,
        )

    async def start(self) -> None:
        """Begin to bring the endpoints up; return at once."""
        self._beating = asyncio.create_task(self._beat())
        for endpoint in self._endpoints:
            await endpoint.start()

    def turn_waiting_away(self) -> None:
        """Tell all who wait for a quota that the server stops, so that they need not wait for nothing."""
        self._line.turn_all_away()

    async def close(self) -> None:
        """Stop what we started, give reservations back, and close all connections."""
        if self._beating is not None:
            self._beating.cancel()
        await self._line.close()
        for endpoint in self._endpoints:
            await endpoint.close()
        await self._store.close()
        if self.answer_cache is not None:
            self.answer_cache.close()

    def states(self) -> dict[str, str]:
        """Return for each endpoint `operational`, `starting…`, or what is wrong."""
        return {endpoint.name: endpoint.state for endpoint in self._endpoints}

    def states_in_short(self) -> dict[str, str]:
        """Return the states without what endpoints said in their own words, for those who have no key."""
        return {
            name: state if state.startswith(STARTING) else state.split(": ")[0] for name, state in self.states().items()
        }

    def models(self) -> list[ServedModel]:
        """Return what a chat may ask for: the roles that are served, then the models."""
        return served_models(self._endpoints)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that are served."""
        return self._roles

    def check_target(self, name: str) -> None:
        """Return where something serves the role or model `name`.

        Raises:
            NotFoundError: nothing does; says what there is.
        """
        candidates(self._endpoints, [name])

    def models_of(self, role: str) -> frozenset[str]:
        """Return the models that serve `role`."""
        return frozenset(endpoint.model for endpoint in self._endpoints if role in endpoint.roles)

    def left_share(self, roles: Sequence[str]) -> float:
        """Return the share of the scarcest quota among the endpoints of `roles` that is left; 1.0 without quotas."""
        serving = [endpoint for endpoint in self._endpoints if set(roles) & set(endpoint.roles)]
        return min((endpoint.left_share for endpoint in serving), default=1.0)

    async def shortage(self, needs: Sequence[tuple[str, int]], *, priority: Priority) -> str | None:
        """Say why calls that need (role, tokens) each would not all fit into what is left now; None where they do.

        An estimate: nothing is reserved, and others may be quicker.
        """
        return await find_shortage(self._endpoints, needs, store=self._store, priority=priority)

    def waiting(self) -> dict[Priority, int]:
        """Return how many requests wait for a quota."""
        return self._line.waiting()

    @property
    def wait_seconds(self) -> float:
        """How long a request waits for a quota where it does not say."""
        return self._settings.wait_seconds

    async def quotas(self) -> list[QuotaView]:
        """Return every endpoint with what is left of its quota."""
        return [await endpoint.view(self._store) for endpoint in self._endpoints]

    async def eta_seconds(self, call: Call) -> float | None:
        """Return in how many seconds `call` will be sent; None when it does not wait for a quota."""
        if call.ticket is None or not call.ticket.in_line:
            return None
        return await self._line.eta_seconds(call.ticket)

    async def chat(self, call: Call) -> Answered:
        """Return the whole answer of an endpoint that gives one, or one that was given to the same request before.

        Raises:
            NotFoundError: nothing serves any target.
            BadRequestError: the model refuses the payload, or it is larger than any quota.
            QuotaSpentError: every endpoint's quota is spent, for longer than the call may wait.
            UnavailableError: none answers now.
        """
        key = self._key_of(call)
        if key is None:
            return await self._answer(call)
        remembered = self._remembered(call, key)
        if remembered is not None:
            return remembered

        async def answer() -> Answered:
            answered = await self._answer(call)
            self._remember(call, key, answered, answered.response)
            return answered

        answered, is_shared = await self._shared.whole(_share_key(key, call), answer)
        if is_shared:
            self._enter_free(call, answered, "shared")
        return answered

    async def chat_stream(self, call: Call) -> AnsweredStream:
        """Return the answer of an endpoint that begins one; errors as in `chat`.

        Once a piece has come there is no other endpoint any more: what follows raises from `chunks`.
        """
        key = self._key_of(call)
        if key is None:
            return await self._answer_stream(call)
        remembered = self._remembered(call, key)
        if remembered is not None:
            chunks = _replay(as_chunks(remembered.response))
            return AnsweredStream(remembered.endpoint, remembered.model, remembered.role, chunks, cached=True)
        return await self._answer_stream_shared(call, key)

    async def _answer(self, call: Call) -> Answered:
        async def ask(running: Running, payload: Payload) -> dict[str, Any]:
            response = await running.endpoint.client.chat(payload, heard=running.heard)
            if not response["choices"]:
                raise empty(running.endpoint)
            running.take(response)
            return response

        running, response = await self._first_that_answers(call, ask)
        running.answered(streamed=False)
        return Answered(running.endpoint.name, running.endpoint.model, running.role, response)

    async def _answer_stream(self, call: Call) -> AnsweredStream:
        async def ask(running: Running, payload: Payload) -> AsyncGenerator[list[Chunk], None]:
            chunks = running.endpoint.client.stream(payload, heard=running.heard)
            try:
                first: list[Chunk] = []
                while not any(_says_something(chunk) for chunk in first):  # until then another may answer instead
                    together = await anext(chunks)
                    for chunk in together:
                        running.take(chunk)
                    first += together
            except StopAsyncIteration:
                raise empty(running.endpoint) from None
            except BaseException:
                await chunks.aclose()
                raise
            return self._accounted(running, first, chunks)

        running, chunks = await self._first_that_answers(call, ask)
        return AnsweredStream(running.endpoint.name, running.endpoint.model, running.role, chunks)

    async def _answer_stream_shared(self, call: Call, key: bytes) -> AnsweredStream:
        async def start() -> tuple[AnsweredStream, AsyncGenerator[list[Chunk], None]]:
            answered = await self._answer_stream(call)
            return answered, self._remembering(call, key, answered)

        shared = await self._shared.stream(_share_key(key, call), start)
        if shared.joined:
            self._enter_free(call, shared.about, "shared")
        return AnsweredStream(shared.about.endpoint, shared.about.model, shared.about.role, shared.chunks)

    async def _remembering(self, call: Call, key: bytes, answered: AnsweredStream) -> AsyncGenerator[list[Chunk], None]:
        """Yield all chunks; an answer that came whole is remembered."""
        kept: list[Chunk] = []
        async with contextlib.aclosing(answered.chunks) as chunks:
            async for together in chunks:
                kept += together
                yield together
        self._remember(call, key, answered, assemble(kept))

    async def _accounted(
        self, running: Running, first: list[Chunk], rest: AsyncGenerator[list[Chunk], None]
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield all chunks; however it ends, the call is accounted for."""
        try:
            async with contextlib.aclosing(rest):
                yield first
                async for together in rest:
                    for chunk in together:
                        running.take(chunk)
                    yield together
            running.answered(streamed=True)
        except EverswarmError as error:
            running.failed(error)
            raise
        except BaseException:  # the reader left
            running.cut()
            raise

    async def _first_that_answers(
        self, call: Call, ask: Callable[[Running, Payload], Awaitable[T]]
    ) -> tuple[Running, T]:
        """Ask the endpoints in order; when all have failed, begin again after a pause."""
        call.ticket = ticket = self._ticket(call)
        failures: list[UnavailableError] = []
        for attempt in range(self._settings.retries + 1):
            if attempt:
                await asyncio.sleep(pause_seconds(attempt - 1, retry_after_seconds=None, random=self._random))
            failures = []
            left = self._able(call.targets, failures)
            while left:
                candidate, running = await self._admitted(call, ticket, left, failures, is_repeated=attempt > 0)
                if running is None:
                    left.remove(candidate)
                    continue
                try:
                    return running, await ask(running, self._payload_for(candidate.endpoint, call))
                except QuotaSpentError as error:
                    await running.refused(error)
                    if candidate.endpoint.quota is None:  # else the line knows when it opens again
                        failures.append(error)
                        left.remove(candidate)
                except UnavailableError as error:
                    running.failed(error)
                    failures.append(error)
                    left.remove(candidate)
                except EverswarmError:
                    running.rejected()
                    raise
                except BaseException:  # the reader left
                    running.cut()
                    raise
            if any((failure.retry_after_seconds or 0) > LONGEST_PAUSE_SECONDS for failure in failures):
                break
        raise nobody_answers(call.targets[0], failures)

    async def _admitted(
        self,
        call: Call,
        ticket: Ticket,
        left: list[Candidate[Endpoint]],
        failures: list[UnavailableError],
        *,
        is_repeated: bool,
    ) -> tuple[Candidate[Endpoint], Running | None]:
        """Return the candidate whose turn it is, and the call that may be sent; None where its breaker opened now."""
        try:
            admitted = await self._line.admit(ticket, [candidate.endpoint for candidate in left])
        except QuotaSpentError as error:
            self.metrics.count("refused", None, queue_seconds=ticket.queued_seconds, priority=call.priority)
            raise nobody_answers(call.targets[0], [*failures, error]) from error
        candidate, reservation = left[admitted.position], admitted.reservation
        if not candidate.endpoint.breaker.may_try():
            failures.append(resting(candidate.endpoint))
            if reservation is not None:
                self._store.cancel_soon(reservation)
            return candidate, None
        return candidate, Running(
            self._books,
            call,
            endpoint=candidate.endpoint,
            role=candidate.role,
            reservation=reservation,
            prompt_tokens=ticket.prompt_tokens,
            is_repeated=is_repeated,
        )

    def _able(self, targets: Sequence[str], failures: list[UnavailableError]) -> list[Candidate[Endpoint]]:
        """Return the candidates that may be asked now, in the order in which to ask; note why the others may not."""
        ordered: list[Candidate[Endpoint]] = []
        for group in candidates(self._endpoints, targets):
            able = []
            for candidate in group:
                if not candidate.endpoint.is_worth_a_try:
                    reason = f"'{candidate.endpoint.name}' is not ready: {candidate.endpoint.state}"
                    failures.append(UnavailableError(reason))
                elif candidate.endpoint.breaker.state == "open":
                    failures.append(resting(candidate.endpoint))
                else:
                    able.append(candidate)
            ordered += order(
                [candidate for candidate in able if candidate.endpoint.weight > 0],
                cost=lambda candidate: candidate.endpoint.load.cost(candidate.endpoint.weight),
                left_share=lambda candidate: candidate.endpoint.left_share,
                is_stale=lambda candidate: candidate.endpoint.load.is_stale,
                random=self._random,
            )
            ordered += [candidate for candidate in able if candidate.endpoint.weight == 0]
        return ordered

    def _ticket(self, call: Call) -> Ticket:
        """Return what the line needs to know: the size of the request, and how long it may wait."""
        return Ticket(
            call.priority,
            prompt_tokens=estimate_prompt_tokens(call.payload) if self._any_quota else 0,
            answer_tokens=most_answer_tokens(call.payload),
            choices=call.payload.get("n") or 1,
            deadline=None if call.wait_seconds is None else time.monotonic() + call.wait_seconds,
        )

    def _payload_for(self, endpoint: Endpoint, call: Call) -> Payload:
        payload = {**call.payload, "model": endpoint.model}
        if endpoint.quota is not None and endpoint.quota.limits and not most_answer_tokens(payload):
            payload["max_tokens"] = endpoint.answer_tokens  # no more than was reserved
        return payload

    def _key_of(self, call: Call) -> bytes | None:
        if self.answer_cache is None or call.cache == "off":
            return None
        user = None if self._settings.cache.across_users else call.user
        return cache_key(call.payload, targets=call.targets, user=user, on_request=call.cache == "on")

    def _remembered(self, call: Call, key: bytes) -> Answered | None:
        found = self.answer_cache.get(key) if self.answer_cache is not None else None
        if found is None:
            return None
        about = found.about
        answered = Answered(about["endpoint"], about["model"], about["role"], found.completion, cached=True)
        self._enter_free(call, answered, "cached")
        return answered

    def _remember(self, call: Call, key: bytes, answered: Answered | AnsweredStream, response: dict[str, Any]) -> None:
        if self.answer_cache is not None:
            about = {"endpoint": answered.endpoint, "model": answered.model, "role": answered.role}
            self.answer_cache.put(key, user=call.user, completion=response, about=about)

    def _quota_left(self) -> list[QuotaLeft]:
        return [
            QuotaLeft(endpoint.name, limit.unit, limit.window_seconds, limit.left)
            for endpoint in self._endpoints
            for limit in endpoint.limits_left
        ]

    def _enter_free(self, call: Call, answered: Answered | AnsweredStream, outcome: Outcome) -> None:
        """Account for an answer that cost nothing."""
        usage = Usage(
            endpoint=answered.endpoint,
            role=answered.role,
            model=answered.model,
            priority=call.priority.value,
            outcome=outcome,
            prompt_tokens=0,
            completion_tokens=0,
            latency_seconds=0.0,
            interaction_id=call.interaction_id,
        )
        self._books.enter(call, usage)

    async def _beat(self) -> None:
        """Keep our reservations alive, and know about how much of each quota is left."""
        while True:
            try:
                await self._store.beat()
                for endpoint in self._endpoints:
                    await endpoint.look_at_quota(self._store)
            except Exception:  # or leases would run out, and others would spend what is ours
                _log.exception("the quotas cannot be looked after")
            self._line.look()
            await asyncio.sleep(BEAT_SECONDS)


async def _gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway_of)]


async def _replay(chunks: Sequence[Chunk]) -> AsyncGenerator[list[Chunk], None]:
    for chunk in chunks:
        yield [chunk]


def _share_key(key: bytes, call: Call) -> bytes:
    """Return what is equal for calls that may wait for each other: none waits longer than it would alone."""
    return key + f"{call.priority.value} {call.wait_seconds}".encode()


def _says_something(chunk: Chunk) -> bool:
    """Say whether a chunk has more than the role of who speaks."""
    for choice in chunk.get("choices") or ():
        said = choice.get("delta") or {}
        if choice.get("finish_reason") or any(value for name, value in said.items() if name != "role"):
            return True
    return False
