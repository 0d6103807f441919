"""One call while it runs: gathers what is said, and stores it as an interaction and a usage row, exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastapi.concurrency import run_in_threadpool

from everswarm.server.database import Database
from everswarm.server.feedback.service import NewInteraction, State, record_interaction
from everswarm.server.gateway import Usage, record_usage

_storing: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
_log = logging.getLogger(__name__)


class Asker(NamedTuple):
    """Who asks: the person, and the application that asks for them, if it is not theirs."""

    user: str
    sender: str | None = None


class Recording:
    """The record of one call. Its `id` is the answer's id, which judgements name."""

    def __init__(self, database: Database, *, id: str, asker: Asker, messages: Sequence[Mapping[str, Any]]) -> None:  # noqa: A002
        """Begin the clock."""
        self.id = id
        self._database = database
        self._asker = asker
        self._messages = messages
        self._started = time.monotonic()
        self._parts: list[str] = []
        self._tokens: Mapping[str, Any] = {}
        self._finish_reason: str | None = None
        self._answerer: tuple[str, str, str | None] = ("", "", None)
        self._stored: asyncio.Task[None] | None = None

    def answered_by(self, endpoint: str, model: str, role: str | None) -> None:
        """Note who answers."""
        self._answerer = (endpoint, model, role)

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Gather the first choice of a `chat.completion` or of a chunk of one, and its token counts."""
        self._tokens = chunk.get("usage") or self._tokens
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                said = choice.get("delta") or choice.get("message") or {}
                if isinstance(said.get("content"), str):
                    self._parts.append(said["content"])
                self._finish_reason = choice.get("finish_reason") or self._finish_reason

    async def store(self, state: State) -> None:
        """Store the call; a cancellation of the caller does not stop it, and a second call does nothing more."""
        await asyncio.shield(self._begin_to_store(state))

    async def store_failure(self) -> None:
        """Store the call as failed; that this fails too must not hide why the call did."""
        try:
            await self.store("failed")
        except Exception:
            _log.exception("a failed call could not be stored")

    def store_soon(self, state: State) -> None:
        """Store the call without waiting, for where waiting is not possible any more."""
        self._begin_to_store(state).add_done_callback(_log_failure)

    def _begin_to_store(self, state: State) -> asyncio.Task[None]:
        if self._stored is None:
            self._stored = asyncio.create_task(run_in_threadpool(self._write, self._final(state)))
            _storing.add(self._stored)
            self._stored.add_done_callback(_storing.discard)
        return self._stored

    def _final(self, state: State) -> State:
        return "cut" if state == "complete" and self._finish_reason == "length" else state

    def _write(self, state: State) -> None:
        endpoint, model, role = self._answerer
        seconds = round(time.monotonic() - self._started, 3)
        prompt, answer = self._tokens.get("prompt_tokens"), self._tokens.get("completion_tokens")
        # half a character cannot be stored as UTF-8
        text = "".join(self._parts).encode("utf-8", "replace").decode()
        interaction = NewInteraction(
            id=self.id, user=self._asker.user, sender=self._asker.sender,
            messages=self._messages, response=text or None, state=state, role=role,
            model=model or None, endpoint=endpoint or None, prompt_tokens=prompt, completion_tokens=answer,
            latency_seconds=seconds,
        )  # fmt: skip
        record_interaction(self._database, interaction)
        record_usage(self._database, Usage(self.id, endpoint, role, model, prompt, answer, seconds, state))


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a call could not be stored: %s", task.exception())
