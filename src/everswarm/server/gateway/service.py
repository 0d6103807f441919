"""Sends a chat to an endpoint that serves what was asked for, and to the next one when that does not answer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from everswarm.errors import ConfigurationError, QuotaSpentError, UnavailableError
from everswarm.llm.protocol import Chunk, Payload
from everswarm.server.gateway.embedded import EmbeddedEndpoint
from everswarm.server.gateway.endpoints import Endpoint, RemoteEndpoint
from everswarm.server.gateway.routing import ServedModel, candidates, served_models
from everswarm.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """A whole answer, and who gave it."""

    endpoint: str
    model: str
    role: str | None
    response: dict[str, Any]  # a `chat.completion`


@dataclass(frozen=True)
class AnsweredStream:
    """An answer that has begun. Close `chunks` to end the work upstream."""

    endpoint: str
    model: str
    role: str | None
    chunks: AsyncGenerator[Chunk, None]


class Gateway:
    """All endpoints of this server."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        """Serve `endpoints`; the earlier is preferred.

        Raises:
            ConfigurationError: two have one name.
        """
        names = [endpoint.name for endpoint in endpoints]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ConfigurationError(f"Two endpoints have the name '{double[0]}'. Give each [[endpoints]] its own.")
        self._endpoints = list(endpoints)

    @classmethod
    def from_settings(cls, settings: Settings) -> Gateway:
        """Return a gateway to the configured endpoints; where there are none, to the embedded engine."""
        if settings.endpoints:
            return cls([RemoteEndpoint(endpoint) for endpoint in settings.endpoints])
        if not settings.engine.enabled:
            return cls([])
        log_path = settings.home / "logs" / "engine.log"
        return cls([EmbeddedEndpoint(settings.engine, models_dir=settings.models_dir, log_path=log_path)])

    async def start(self) -> None:
        """Begin to bring the endpoints up; return at once."""
        for endpoint in self._endpoints:
            await endpoint.start()

    async def close(self) -> None:
        """Stop what we started, and close all connections."""
        for endpoint in self._endpoints:
            await endpoint.close()

    def states(self) -> dict[str, str]:
        """Return for each endpoint `operational`, `starting…`, or what is wrong."""
        return {endpoint.name: endpoint.state for endpoint in self._endpoints}

    def models(self) -> list[ServedModel]:
        """Return what a chat may ask for: the roles that are served, then the models."""
        return served_models(self._endpoints)

    async def chat(self, payload: Payload, *, targets: Sequence[str]) -> Answered:
        """Return the whole answer of the first endpoint that gives one.

        Args:
            payload: in OpenAI's shape; its `model` is replaced by the endpoint's.
            targets: names of roles or models, the most wanted first.

        Raises:
            NotFoundError: nothing serves any target.
            BadRequestError: the model refuses the payload.
            QuotaSpentError: every endpoint's quota is spent.
            UnavailableError: none answers now.
        """

        async def ask(endpoint: Endpoint) -> dict[str, Any]:
            return await endpoint.client.chat({**payload, "model": endpoint.model})

        endpoint, role, response = await self._first_that_answers(targets, ask)
        return Answered(endpoint.name, endpoint.model, role, response)

    async def chat_stream(self, payload: Payload, *, targets: Sequence[str]) -> AnsweredStream:
        """Return the answer of the first endpoint that begins one; arguments and errors as in `chat`.

        Once a piece has come there is no other endpoint any more: what follows raises from `chunks`.
        """

        async def ask(endpoint: Endpoint) -> AsyncGenerator[Chunk, None]:
            chunks = endpoint.client.stream({**payload, "model": endpoint.model})
            try:
                first = await anext(chunks)
            except StopAsyncIteration:
                raise UnavailableError(f"'{endpoint.name}' gave an empty answer.") from None
            except BaseException:
                await chunks.aclose()
                raise
            return _with_first(first, chunks)

        endpoint, role, chunks = await self._first_that_answers(targets, ask)
        return AnsweredStream(endpoint.name, endpoint.model, role, chunks)

    async def _first_that_answers(
        self, targets: Sequence[str], ask: Callable[[Endpoint], Awaitable[T]]
    ) -> tuple[Endpoint, str | None, T]:
        failures: list[UnavailableError] = []
        for endpoint, role in candidates(self._endpoints, targets):
            if not endpoint.is_worth_a_try:
                failures.append(UnavailableError(f"'{endpoint.name}' is not ready: {endpoint.state}"))
                continue
            try:
                answer = await ask(endpoint)
            except UnavailableError as error:
                endpoint.note_failure(error)
                failures.append(error)
            else:
                endpoint.note_success()
                return endpoint, role, answer
        raise _nobody_answers(targets[0], failures)


def _gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway_of)]


async def _with_first(first: Chunk, rest: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    async with contextlib.aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


def _nobody_answers(target: str, failures: Sequence[UnavailableError]) -> UnavailableError:
    """Return one error for all failures: a spent quota only where every endpoint's is spent."""
    seconds = min(failure.retry_after_seconds or 1 for failure in failures)
    kind = QuotaSpentError if all(isinstance(failure, QuotaSpentError) for failure in failures) else UnavailableError
    reasons = " ".join(str(failure).rstrip(". ") + "." for failure in failures)
    return kind(
        f"No endpoint can answer for '{target}' now. {reasons} Try again in {seconds} s.", retry_after_seconds=seconds
    )
