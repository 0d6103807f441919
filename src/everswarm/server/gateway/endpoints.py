"""An endpoint as the gateway sees it: a chat model, what it is for, and how it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence

from everswarm.errors import ConfigurationError, EverswarmError, QuotaSpentError
from everswarm.llm.openai_client import OpenAIClient
from everswarm.llm.protocol import ChatModel
from everswarm.server.gateway.routing import OPERATIONAL
from everswarm.settings import EndpointSettings

STARTING = "starting"
LOOK_EVERY_SECONDS = 10.0  # at an endpoint that does not answer


class Endpoint:
    """One chat model under a name. Worth a try in any state: asking is how we learn that it is back."""

    def __init__(self, name: str, *, model: str, roles: Sequence[str], client: ChatModel) -> None:
        self.name = name
        self.model = model
        self.roles = tuple(roles)
        self.client = client
        self._state = OPERATIONAL

    @property
    def state(self) -> str:
        """`operational`, `starting…`, or what is wrong."""
        return self._state

    @property
    def is_worth_a_try(self) -> bool:
        """Whether a request may be sent now."""
        return True

    def note_success(self) -> None:
        """It answered."""
        self._state = OPERATIONAL

    def note_failure(self, error: EverswarmError) -> None:
        """It did not answer. A spent quota is no failure of the endpoint."""
        if not isinstance(error, QuotaSpentError):
            self._state = str(error)

    async def start(self) -> None:
        """Begin; return at once."""

    async def close(self) -> None:
        """Give everything back."""
        await self.client.close()


class RemoteEndpoint(Endpoint):
    """An address that speaks the OpenAI protocol; looked at in the background while it does not answer."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Read the credential from its variable.

        Raises:
            ConfigurationError: the variable is not set.
        """
        self._http = OpenAIClient(
            settings.base_url,
            name=f"the endpoint '{settings.name}'",
            api_key=_credential(settings),
            timeout_seconds=settings.timeout_seconds,
        )
        super().__init__(settings.name, model=settings.model, roles=settings.roles, client=self._http)
        self._state = STARTING
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look whether it is there."""
        self._watch = asyncio.create_task(self._look_until_operational())

    async def close(self) -> None:
        """Stop looking, and close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await super().close()

    async def _look_until_operational(self) -> None:
        while True:
            if self._state != OPERATIONAL:
                try:
                    await self._http.probe()
                    self.note_success()
                except EverswarmError as error:
                    self.note_failure(error)
            await asyncio.sleep(LOOK_EVERY_SECONDS)


def _credential(settings: EndpointSettings) -> str | None:
    if settings.api_key_env is None:
        return None
    value = os.environ.get(settings.api_key_env)
    if not value:
        raise ConfigurationError(
            f"The endpoint '{settings.name}' takes its credential from the variable {settings.api_key_env}, which is "
            "not set. Set it, or remove api_key_env from the endpoint."
        )
    return value
