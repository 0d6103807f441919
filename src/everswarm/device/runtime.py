"""Answers on this device, with no server: the base and its adapter in an engine that lives as long as the command."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from everswarm.device.journal import Interaction, now, open_journal, remember
from everswarm.device.state import DeviceHome, Installed
from everswarm.errors import BadRequestError, ConfigurationError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.schemas.interaction import Message

CONTEXT_TOKENS = 2048
START_SECONDS = 120.0  # a phone-sized model loads in one or two; a cold disk takes longer
SILENCE_SECONDS = 120.0  # without a token: the engine hangs


class Engine(Protocol):
    """What the runtime needs of `llm.embedded.EmbeddedEngine`."""

    @property
    def base_url(self) -> str:
        """Where it speaks the OpenAI protocol."""

    def start(self) -> object:
        """Start it; returns at once."""

    def wait_ready(self, timeout_seconds: float) -> object:
        """Wait until it answers."""

    def stop(self) -> object:
        """End it."""


EngineFactory = Callable[[Path, Path | None, str, Path], Engine]  # base, adapter, model name, log


@dataclass(frozen=True)
class Answer:
    """What the device said. `id` is the interaction's, for rating it."""

    id: str
    text: str
    seconds: float
    tokens: int
    model: str


class DeviceRuntime:
    """The model in use, ready to answer. Use it as a context manager: the engine ends with the block."""

    def __init__(self, home: Path, *, threads: int = 1, engine_factory: EngineFactory | None = None) -> None:
        self.place = DeviceHome(home.expanduser())
        self.installed = _installed(self.place)
        make_engine = engine_factory or _embedded(threads)
        base, adapter = self.installed.base, self.installed.adapter
        self.engine = make_engine(
            self.place.model_path(base),
            self.place.model_path(adapter) if adapter else None,
            self.installed.model,
            self.place.engine_log_path,
        )

    def __enter__(self) -> Self:
        self.engine.start()
        try:
            self.engine.wait_ready(START_SECONDS)
        except BaseException:
            self.engine.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()

    def answer(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        adapter: bool = True,
        temperature: float = 0.0,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer the last of `messages`, and remember it for `rate`. `adapter=False` answers with the base alone.

        Raises:
            BadRequestError: the conversation is longer than the model's context.
            UnavailableError: the engine stopped.
        """
        started = time.monotonic()
        body = self._body(messages, max_tokens=max_tokens, adapter=adapter, temperature=temperature)
        parts: list[str] = []
        tokens = 0
        for piece, total in _stream(self.engine.base_url, body):
            tokens = total
            if piece:
                parts.append(piece)
                if on_token:
                    on_token(piece)
        model = self._name(adapter)
        answer = Answer(
            id=new_id(), text="".join(parts), seconds=round(time.monotonic() - started, 3), tokens=tokens, model=model
        )
        kept = Interaction(id=answer.id, created_at=now(), model=model, messages=list(messages), response=answer.text)
        with open_journal(self.place.journal_path) as connection:
            remember(connection, kept)
        return answer

    def _body(
        self, messages: Sequence[Message], *, max_tokens: int, adapter: bool, temperature: float
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.installed.model,
            "messages": [message.model_dump() for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.installed.adapter:  # the engine holds base and adapter; a request says how strongly the adapter counts
            body["lora"] = [{"id": 0, "scale": 1.0 if adapter else 0.0}]
        return body

    def _name(self, adapter: bool) -> str:
        return (
            f"{self.installed.model}@{self.installed.version}"
            if adapter and self.installed.adapter
            else self.installed.model
        )


def _installed(place: DeviceHome) -> Installed:
    """Return the model in use, with all its files there."""
    installed = place.load().current
    if installed is None:
        raise ConfigurationError(
            "This device has no model yet. Fetch one while its server runs: everswarm device sync. Before the first "
            "release there is none, unless on the server's machine: everswarm models quantize"
        )
    missing = [artifact.name for artifact in installed.artifacts if not place.model_path(artifact).exists()]
    if missing:
        raise ConfigurationError(
            f"{', '.join(missing)} is gone from {place.models_dir}. Fetch it again: everswarm device sync"
        )
    return installed


def _embedded(threads: int) -> EngineFactory:
    """Return a maker of the real engine; imported here, since it needs the engine extra."""

    def make(base: Path, adapter: Path | None, model: str, log_path: Path) -> Engine:
        from everswarm.llm.embedded import EmbeddedEngine

        return EmbeddedEngine(
            base,
            model=model,
            threads=threads,
            context_tokens=CONTEXT_TOKENS,
            parallel=1,
            adapter=adapter,
            log_path=log_path,
        )

    return make


def _stream(base_url: str, body: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield (text, tokens so far) of a streamed chat completion."""
    url = base_url.rstrip("/") + ("" if base_url.rstrip("/").endswith("/v1") else "/v1") + "/chat/completions"
    tokens = 0
    try:
        with (
            httpx.Client(timeout=SILENCE_SECONDS, trust_env=False) as http,  # loopback: no proxy in between
            http.stream("POST", url, json=body) as response,
        ):
            if response.status_code >= 400:
                raise _refused(response)
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise UnavailableError(f"The engine failed while answering: {chunk['error']}. Ask again.")
                piece = "".join(choice.get("delta", {}).get("content") or "" for choice in chunk.get("choices", []))
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens + bool(piece))
                yield piece, tokens
    except httpx.TransportError as error:
        raise UnavailableError(
            f"The engine stopped while answering ({error or type(error).__name__}). Ask again; its log is engine.log."
        ) from error


def _refused(response: httpx.Response) -> BadRequestError | UnavailableError:
    """Say what the engine did not like."""
    text = response.read().decode(errors="replace")
    try:
        detail = json.loads(text)["error"]
        detail = detail.get("message", text) if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError):
        detail = text[:500]
    if response.status_code < 500:
        return BadRequestError(
            f"The model cannot take this: {detail}. Its context is {CONTEXT_TOKENS} tokens; ask a shorter question."
        )
    return UnavailableError(f"The engine cannot answer now: {detail}. Ask again.")
