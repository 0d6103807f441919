"""The embedded llama.cpp as an endpoint: fetches its model if needed, then starts the engine; meanwhile says so."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

from everswarm.errors import ConfigurationError, DigestMismatchError, EverswarmError, UnavailableError
from everswarm.llm.embedded import EmbeddedEngine
from everswarm.llm.forced_tools import ForcedTools
from everswarm.llm.openai_client import OpenAIClient
from everswarm.llm.pull import pull_gguf
from everswarm.server.gateway.endpoints import STARTING, Endpoint
from everswarm.server.gateway.limits import quota_of
from everswarm.server.gateway.profiles import embedded_entry
from everswarm.server.gateway.routing import OPERATIONAL
from everswarm.settings import EndpointSettings, EngineSettings

TRY_AGAIN_SECONDS = 60.0  # to fetch the model, when no source answered

_log = logging.getLogger(__name__)


class EmbeddedEndpoint(Endpoint):
    """The model that runs in our own child process."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        models_dir: Path,
        log_path: Path | None = None,
        entry: EndpointSettings | None = None,
        interactive_share: float = 0.2,
    ) -> None:
        """Prepare the engine.

        Args:
            settings: of the engine.
            models_dir: where its model is, or goes.
            log_path: of the engine's complaints.
            entry: its complete entry in the endpoint table, which wins over `settings`; default: all web roles.
            interactive_share: of its quota, where it has one.
        """
        entry = entry or embedded_entry(settings)
        settings = settings.model_copy(update={"model": entry.model, "answer_tokens": entry.answer_tokens})
        client = OpenAIClient(
            self._base_url, name="the embedded engine", timeout_seconds=entry.timeout_seconds, sends_again=True
        )
        super().__init__(
            entry.name,
            model=entry.model,
            roles=entry.roles,
            client=ForcedTools(client),
            quota=quota_of(entry, None, interactive_share=interactive_share),
            weight=entry.weight,
            answer_tokens=entry.answer_tokens,
            prices=(entry.price_per_million_prompt_tokens, entry.price_per_million_answer_tokens),
        )
        self._settings = settings
        self._models_dir = models_dir
        self._log_path = log_path
        self._engine: EmbeddedEngine | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()  # an engine is not started after closing
        self._state = STARTING

    @property
    def state(self) -> str:
        """The engine's state once there is one."""
        return self._state if self._engine is None else self._engine.state

    @property
    def is_worth_a_try(self) -> bool:
        """Only when the engine answers: until then there is no address."""
        return self.state == OPERATIONAL

    def note_success(self) -> None:
        """Nothing to note: the engine knows its state."""

    def note_failure(self, error: EverswarmError) -> None:
        """Nothing to note: the engine knows its state."""

    async def start(self) -> None:
        """Fetch the model and start the engine in a thread; return at once."""
        threading.Thread(target=self._bring_up, name="embedded-endpoint", daemon=True).start()

    async def close(self) -> None:
        """Stop the engine."""
        await super().close()
        with self._lock:
            self._closing.set()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)

    def _bring_up(self) -> None:
        while not self._closing.is_set():
            try:
                self._start_engine()
            except (ConfigurationError, DigestMismatchError) as error:  # only the operator can mend these
                self._report(str(error))
                return
            except EverswarmError as error:
                self._report(f"{error} Trying again every {TRY_AGAIN_SECONDS:.0f} s.")
                self._closing.wait(TRY_AGAIN_SECONDS)
            except Exception as error:
                _log.exception("the embedded engine cannot be started")
                self._report(f"cannot be started: {error}. The server's log has the details.")
                return
            else:
                return

    def _start_engine(self) -> None:
        model = self._settings.model
        fetched = pull_gguf(model, self._models_dir, on_progress=lambda text: self._report(f"{STARTING}: {text}"))
        engine = EmbeddedEngine(
            fetched.path,
            model=model,
            threads=self._settings.threads,
            context_tokens=self._settings.context_tokens,
            parallel=self._settings.parallel,
            answer_tokens=self._settings.answer_tokens,
            log_path=self._log_path,
        )
        with self._lock:
            if not self._closing.is_set():
                engine.start()
                self._engine = engine

    def _report(self, text: str) -> None:
        self._state = text
        _log.info("embedded engine: %s", text)

    def _base_url(self) -> str:
        if self._engine is None:
            raise UnavailableError(f"The embedded engine does not answer yet: {self._state}")
        return self._engine.base_url
