"""One chat while it runs: gathers what is said, and stores it as an interaction, exactly once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from everswarm.identifiers import new_id
from everswarm.server.database import Database
from everswarm.server.feedback.reading import printable
from everswarm.server.feedback.service import NewInteraction, State, record_interaction
from everswarm.server.swarm.trace import Traced, read_count
from everswarm.server.threads import forget_late_answer

_log = logging.getLogger(__name__)


class Asker(NamedTuple):
    """Who asks: the person, and the application that asks for them, if it is not theirs."""

    user: str
    sender: str | None = None


class Recording:
    """The record of one chat. Its `id` is the answer's id, which judgements name."""

    def __init__(self, database: Database, *, asker: Asker, messages: Sequence[Mapping[str, Any]]) -> None:
        """Begin the clock."""
        self.id = new_id()
        self._database = database
        self._asker = asker
        self.messages = messages  # as the models are asked, without what roles and tools add
        self.trace: Traced | None = None
        self.on_end: Callable[[], None] | None = None
        self.thread_id: str | None = None  # the conversation that it belongs to, and is deleted with
        self.thread_is_stored = False  # so that it is gone only if somebody deleted it
        self._started = time.monotonic()
        self._parts: list[str] = []
        self._tokens: Mapping[str, Any] = {}
        self._finish_reason: str | None = None
        self._answerer: tuple[str, str, str | None] = ("", "", None)
        self._is_stored = False

    def answered_by(self, endpoint: str, model: str, role: str | None) -> None:
        """Note who answers."""
        self._answerer = (endpoint, model, role)

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Gather the first choice of a `chat.completion` or of a chunk of one, and its token counts."""
        usage = chunk.get("usage")
        if isinstance(usage, Mapping) and usage:
            self._tokens = usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                said = choice.get("delta") or choice.get("message") or {}
                text = said.get("content")
                if isinstance(text, str):
                    self._parts.append(text)
                self._finish_reason = choice.get("finish_reason") or self._finish_reason

    @property
    def text(self) -> str:
        """What was said so far."""
        return printable("".join(self._parts))

    def store(self, state: State) -> None:
        """Have the interaction stored within milliseconds; a second call does nothing.

        Raises:
            UnavailableError: too much waits to be stored already.
        """
        if self._is_stored:
            return
        self._is_stored = True
        if self.on_end is not None:
            self.on_end()
        endpoint, model, role = self._answerer
        interaction = NewInteraction(
            id=self.id,
            user=self._asker.user,
            sender=self._asker.sender,
            messages=self.messages,
            response=self.text or None,
            state="cut" if state == "complete" and self._finish_reason == "length" else state,
            role=role,
            model=model or None,
            endpoint=endpoint or None,
            prompt_tokens=read_count(self._tokens.get("prompt_tokens")),
            completion_tokens=read_count(self._tokens.get("completion_tokens")),
            latency_seconds=round(time.monotonic() - self._started, 3),
            looked_up=self.trace is not None and self.trace.looked_up,
            trace=None if self.trace is None else self.trace.stored(),
            thread_id=self.thread_id,
        )
        record_interaction(self._database, interaction)
        if state != "complete" and self.thread_id is not None and self.thread_is_stored:
            self._forget_if_late(self.thread_id)

    def _forget_if_late(self, thread_id: str) -> None:
        """Look whether the thread was deleted meanwhile; behind the back of who left, and of who is told an error."""
        forget = partial(forget_late_answer, self._database, user=self._asker.user, thread_id=thread_id)
        looking = asyncio.get_running_loop().run_in_executor(None, partial(forget, interaction_id=self.id))
        looking.add_done_callback(_log_problem)


def _log_problem(looking: asyncio.Future[bool]) -> None:
    if not looking.cancelled() and (error := looking.exception()) is not None:
        _log.warning("a stopped answer could not be compared with its thread: %s", error)
