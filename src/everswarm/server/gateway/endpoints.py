"""An endpoint as the gateway sees it: a chat model, what it is for, how it is, and what is left of its quota."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dotenv import dotenv_values

from everswarm.errors import ConfigurationError, CreditSpentError, EverswarmError, QuotaSpentError
from everswarm.llm.openai_client import OpenAIClient
from everswarm.llm.protocol import ChatModel
from everswarm.schemas.gateway import LimitView, QuotaView
from everswarm.server.gateway.balancing import Load
from everswarm.server.gateway.breaker import Breaker
from everswarm.server.gateway.limits import next_credit_reset, quota_of
from everswarm.server.gateway.quota import Quota, QuotaState
from everswarm.server.gateway.routing import OPERATIONAL
from everswarm.server.gateway.serving import serving
from everswarm.settings import EndpointSettings

if TYPE_CHECKING:
    from everswarm.server.gateway.quota_store import QuotaStore

STARTING = "starting"
LOOK_EVERY_SECONDS = 10.0  # at an endpoint that does not answer
LOOK_AT_MODELS_SECONDS = 60.0  # at one that lacks our model: some lists are long
_log = logging.getLogger(__name__)
CLOSED_SECONDS = 60.0  # where a 429 does not say


class Endpoint:
    """One chat model under a name. Worth a try in any state: asking is how we learn that it is back."""

    def __init__(
        self,
        name: str,
        *,
        model: str,
        roles: Sequence[str],
        client: ChatModel,
        quota: Quota | None = None,
        weight: float = 1.0,
        answer_tokens: int = 1024,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Prepare an endpoint.

        Args:
            name: its own, in the table.
            model: what to ask it for.
            roles: what the model is for.
            client: asks it.
            quota: what it allows; None where nothing is counted.
            weight: share of the requests, beside others that are as fast; 0 for only when those fail.
            answer_tokens: reserved where a request sets no limit.
            prices: in USD a million prompt tokens and a million answer tokens.
        """
        self.name = name
        self.model = model
        self.roles = tuple(roles)
        self.client = client
        self.quota = quota
        self.weight = weight
        self.answer_tokens = _fitting(answer_tokens, quota)
        self.prices = prices
        self.breaker = Breaker()
        self.load = Load()
        self.limits_left: tuple[LimitView, ...] = ()  # as of the last look
        self.left_share = 1.0  # of the scarcest of them
        self._state = OPERATIONAL
        self._closed_until: datetime | None = None  # as of the last look
        self._closed_reason: str | None = None

    @property
    def state(self) -> str:
        """`operational`, `starting…`, or what is wrong."""
        if self._closed_until is not None and datetime.now(UTC) < self._closed_until:
            return f"closed until {self._closed_until:%Y-%m-%d %H:%M:%S} UTC: {self._closed_reason}"
        return self._state

    @property
    def is_worth_a_try(self) -> bool:
        """Whether a request may be sent now."""
        return True

    def note_success(self) -> None:
        """It answered."""
        self._enter(OPERATIONAL)

    def note_failure(self, error: EverswarmError) -> None:
        """It did not answer. A spent quota is no failure of the endpoint."""
        if not isinstance(error, QuotaSpentError):
            self._enter(str(error))

    def _enter(self, state: str) -> None:
        """Be in `state` from now on; the log says so once."""
        if state != self._state:
            _log.log(logging.INFO if state == OPERATIONAL else logging.WARNING, "endpoint '%s': %s", self.name, state)
            self._state = state

    def closes_for_seconds(self, error: QuotaSpentError) -> float:
        """Return how long nobody should ask after this refusal."""
        return float(error.retry_after_seconds or CLOSED_SECONDS)

    def price_usd(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Return what a call of this size costs."""
        return (prompt_tokens * self.prices[0] + answer_tokens * self.prices[1]) / 1e6

    async def look_at_quota(self, store: QuotaStore) -> QuotaState | None:
        """Return how much of the quota is used by all processes, and remember the share that is left."""
        if self.quota is None:
            return None
        state = await store.view(self.quota)
        self.limits_left = state.limits
        shares = [limit.left / limit.amount for limit in state.limits]
        self.left_share = 0.0 if state.closed_until else min(shares, default=1.0)
        self._closed_until, self._closed_reason = state.closed_until, state.closed_reason
        return state

    async def view(self, store: QuotaStore) -> QuotaView:
        """Return the endpoint as `/api/quotas` shows it."""
        state = await self.look_at_quota(store)
        return QuotaView(
            endpoint=self.name,
            model=self.model,
            roles=list(self.roles),
            state=self.state,
            limits=list(state.limits) if state else [],
            closed_until=state.closed_until if state else None,
            closed_reason=state.closed_reason if state else None,
            latency_seconds=self.load.latency_seconds,
            running=self.load.running,
        )

    async def start(self) -> None:
        """Begin; return at once."""

    async def close(self) -> None:
        """Give everything back."""
        await self.client.close()


class RemoteEndpoint(Endpoint):
    """An address that speaks the OpenAI protocol; looked at in the background while it cannot be used."""

    def __init__(self, settings: EndpointSettings, *, interactive_share: float = 0.2) -> None:
        """Read the credential from its variable.

        Args:
            settings: a complete entry of the table (`profiles.expand`).
            interactive_share: of its quota.

        Raises:
            ConfigurationError: the variable is not set.
        """
        credential = credential_of(settings)
        self._http = remote_client(settings, credential)
        super().__init__(
            settings.name,
            model=settings.model or settings.name,  # until it says what it serves
            roles=settings.roles,
            client=self._http,
            quota=quota_of(settings, credential, interactive_share=interactive_share),
            weight=settings.weight,
            answer_tokens=settings.answer_tokens,
            prices=(settings.price_per_million_prompt_tokens, settings.price_per_million_answer_tokens),
        )
        self._settings = settings
        self._state = STARTING
        self._lacks_model = not settings.model
        self._has_answered = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_worth_a_try(self) -> bool:
        """Not while it lacks the model: each request would be refused."""
        return not self._lacks_model

    def note_success(self) -> None:
        """It answered: whatever its list says, it serves the model."""
        super().note_success()
        self._has_answered = True

    def closes_for_seconds(self, error: QuotaSpentError) -> float:
        """Return how long nobody should ask: after a 402, until there is credit again."""
        if not isinstance(error, CreditSpentError):
            return super().closes_for_seconds(error)
        now = datetime.now(UTC)
        reset = next_credit_reset(self._settings.base_url, self._settings.model, now=now)
        return max(super().closes_for_seconds(error), (reset - now).total_seconds())

    async def start(self) -> None:
        """Begin to look whether it is there and serves the model."""
        self._watch = asyncio.create_task(self._look_while_unusable())

    async def close(self) -> None:
        """Stop looking, and close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await super().close()

    async def _look_while_unusable(self) -> None:
        while True:
            if self._state != OPERATIONAL:
                try:
                    self._note_models(await self._http.probe())
                except EverswarmError as error:
                    self.note_failure(error)
            await asyncio.sleep(LOOK_AT_MODELS_SECONDS if self._lacks_model else LOOK_EVERY_SECONDS)

    def _note_models(self, served: Sequence[str]) -> None:
        found = serving(self._settings, served)
        self._lacks_model = not found.is_served and not self._has_answered
        self.model = found.model or self.model
        self._enter(found.problem if self._lacks_model else OPERATIONAL)


def _fitting(answer_tokens: int, quota: Quota | None) -> int:
    """Return how long an answer may be where a request does not say: never more than half of a limit."""
    limits = [limit.amount // 2 for limit in (quota.limits if quota else ()) if limit.unit == "tokens"]
    return max(1, min([answer_tokens, *limits]))


def remote_client(settings: EndpointSettings, credential: str | None) -> OpenAIClient:
    """Return a client of an endpoint elsewhere; nothing is opened yet."""
    return OpenAIClient(
        settings.base_url,
        name=f"the endpoint '{settings.name}'",
        api_key=credential,
        timeout_seconds=settings.timeout_seconds,
        connect_seconds=settings.connect_seconds,
    )


def credential_of(settings: EndpointSettings) -> str | None:
    """Return what to ask the endpoint with: from its variable in the environment, or else in the file `.env`.

    Raises:
        ConfigurationError: it has a variable, which is not set.
    """
    name = settings.api_key_env
    if name is None:
        return None
    value = (os.environ.get(name) or dotenv_values(".env").get(name) or "").strip()
    if not value:
        mend = "Set it." if settings.profile else "Set it, or remove api_key_env from the endpoint."
        raise ConfigurationError(
            f"The endpoint '{settings.name}' takes its credential from the variable {name}, which is not set. {mend}"
        )
    return value
