"""One request on its way through the swarm. Strategies ask models through it; it keeps budget, trace and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from everswarm.errors import EverswarmError
from everswarm.llm.protocol import Chunk, Payload
from everswarm.schemas.trace import Purpose
from everswarm.server.gateway import Answered, AnsweredStream, Call, Gateway
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.budget import Budget, OverBudgetError, Size
from everswarm.server.swarm.roles import with_role
from everswarm.server.swarm.routing import Route
from everswarm.server.swarm.tools.tool import Tool
from everswarm.server.swarm.tools.toolbox import Toolbox
from everswarm.server.swarm.trace import Step, Traced
from everswarm.settings import RoleSettings

CALCULATOR = "calculator"  # the model that an answer names where none was asked
_OUR_OWN: tuple[Purpose, ...] = ("check", "decide", "compact")  # questions of ours, of which the asker knows nothing
_LIMITS = ("max_tokens", "max_completion_tokens", "stream", "stream_options", "logprobs", "top_logprobs")

Reply = Answered | AnsweredStream


@dataclass(slots=True)
class Ask:
    """One call that a strategy makes beside the last one."""

    role: str
    purpose: Purpose
    why: str = ""
    messages: Sequence[Mapping[str, Any]] | None = None  # default: those of the request
    answer_tokens: int | None = None  # default: those of the request
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the payload, over those of the request
    may_wait: bool = True  # for a quota, while there is no answer yet


@dataclass(slots=True)
class Run:
    """What is asked, of whom, and what has been done so far."""

    gateway: Gateway
    call: Call  # the request as it came, for the roles that may answer it
    route: Route
    trace: Traced
    roles: Mapping[str, RoleSettings]
    question: str  # the last that the user said
    answer_tokens: int  # of one answer, at most
    streams: bool = False  # the reader wants the last call piece by piece
    tell: Callable[[str], None] = lambda text: None  # what goes on, for the reader
    is_named: bool = False  # the request names who answers
    is_wished: bool = False  # it names the strategy
    role_for: Callable[[str], str] = lambda text: "primary"  # who is good at a part of the request
    toolbox: Toolbox | None = None
    tools: Mapping[str, Tool] = field(default_factory=dict)  # that the role may use for this request
    tool_steps: int = 4
    budget: Budget | None = None  # None for a single call, which costs what it costs
    best: Answered | None = None  # to be given where the rest fails
    current: Call | None = None  # that runs now, or last

    async def ask(self, ask: Ask) -> Answered:
        """Return the whole answer of one call; raises what `Gateway.chat` raises, or `OverBudgetError`."""
        return await self._ask(ask, waits=ask.may_wait and self.best is None)

    async def _ask(self, ask: Ask, *, waits: bool) -> Answered:
        step = self.trace.begin(ask.purpose, ask.role, ask.why)
        payload = self._payload_of(ask)
        taken = self._take(step, payload, ask.answer_tokens or self.answer_tokens)
        payload = {**payload, "max_tokens": taken.answer_tokens}
        used: int | None = 0
        try:
            answered = await self.gateway.chat(self._call(ask.role, payload, waits=waits))
            step.answered(answered)
            step.count(answered.response.get("usage"))
            used = 0 if answered.cached else _total(step)
            step.end()
            return answered
        except EverswarmError as error:
            step.end("failed", str(error))
            raise
        finally:
            if step.ended is None:  # cancelled: what was done is spent
                step.ended, used = time.monotonic(), None
            self._settle(taken, used)

    async def ask_all(
        self, asks: Sequence[Ask], *, came: Callable[[int, Answered], None] = lambda number, answered: None
    ) -> list[Answered | EverswarmError | OverBudgetError]:
        """Return the answers of calls that run side by side, in their order; one that fails does not stop the rest.

        Each is shown to `came` as soon as it is there: the deadline may come before all are.
        """
        waits = self.best is None  # also for those that begin when one has come already

        async def one(number: int, ask: Ask) -> Answered | EverswarmError | OverBudgetError:
            try:
                answered = await self._ask(ask, waits=waits and ask.may_wait)
            except (EverswarmError, OverBudgetError) as error:
                return error
            came(number, answered)
            return answered

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number, ask)) for number, ask in enumerate(asks)]
        return [task.result() for task in tasks]

    async def finish(
        self,
        role: str,
        purpose: Purpose = "answer",
        *,
        why: str = "",
        messages: Sequence[Mapping[str, Any]] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Return the answer of the last call, in the way that the reader wants it; raises as `ask` does."""
        step = self.trace.begin(purpose, role, why)
        payload: Payload = self._payload(role, messages=messages, fields=fields)
        taken = None
        if self.budget is not None:
            taken = self._take(step, payload, self.answer_tokens)
            payload = {**payload, "max_tokens": taken.answer_tokens}
            if self.streams:
                payload = {**payload, "stream": True, "stream_options": {"include_usage": True}}
        call = self._call(role, payload, waits=self.best is None)
        try:
            answered = await (self.gateway.chat_stream(call) if self.streams else self.gateway.chat(call))
        except BaseException as error:
            step.end("failed" if isinstance(error, EverswarmError) else "cut", str(error))
            if taken is not None:
                self._settle(taken, 0 if isinstance(error, EverswarmError) else None)
            raise
        step.answered(answered)
        self.trace.role = answered.role
        if isinstance(answered, AnsweredStream):
            return replace(answered, chunks=_watched(answered.chunks, step))
        step.count(answered.response.get("usage"))
        step.end()
        return answered

    def came(self, _number: int, answered: Answered) -> None:
        """Have an answer in hand; the first that comes is the best so far."""
        self.best = self.best or answered

    def keep(self, tokens: int) -> AbstractContextManager[None]:
        """Leave so many tokens of the budget alone meanwhile."""
        return nullcontext() if self.budget is None else self.budget.keep(tokens)

    @property
    def needs_no_model(self) -> bool:
        """Whether the whole question is a sum, which is calculated."""
        return self.route.strategy == "calculate" and self.route.kind == "arithmetic"

    def say(self, text: str, *, model: str) -> Answered:
        """Return an answer that no model gave."""
        self.trace.role = None
        message = {"role": "assistant", "content": text}
        response = {
            "id": "",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
        return Answered("", model, None, response)

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        """The conversation as it came."""
        messages: list[Mapping[str, Any]] = self.call.payload["messages"]
        return messages

    def size(self, *roles: str) -> Size:
        """Return the size of a plain call to the one of `roles` for which it is largest."""
        prompts = [estimate_prompt_tokens(with_role(self.call.payload, self.roles.get(role))) for role in roles]
        return Size(max(prompts), self.answer_tokens)

    def other_role(self, role: str) -> str | None:
        """Return whom `role` escalates to; None where nobody of another model is there."""
        settings = self.roles.get(role)
        other = settings.escalates_to if settings else None
        if other is None or other == role or other not in self.gateway.roles:
            return None
        return other if self.gateway.models_of(other) != self.gateway.models_of(role) else None

    def _payload_of(self, ask: Ask) -> Payload:
        """Return what is sent; a question of ours has no system prompt, format or stop words of the request's."""
        if ask.purpose in _OUR_OWN and ask.messages is not None:
            return {"messages": ask.messages, **ask.fields}
        return self._payload(ask.role, messages=ask.messages, fields=ask.fields)

    def _payload(
        self, role: str, *, messages: Sequence[Mapping[str, Any]] | None, fields: Mapping[str, Any] | None
    ) -> Payload:
        payload = self.call.payload
        if self.budget is None and messages is None and not fields:
            return with_role(payload, self.roles.get(role))
        changed = {name: value for name, value in payload.items() if name not in _LIMITS}
        if messages is not None:
            changed["messages"] = messages
        changed = dict(with_role(changed, self.roles.get(role)))
        return {**changed, **(fields or {})}

    def _take(self, step: Step, payload: Payload, answer_tokens: int) -> Size:
        prompt_tokens = estimate_prompt_tokens(payload)
        if self.budget is None:
            return Size(prompt_tokens, answer_tokens)
        try:
            return self.budget.take(prompt_tokens, answer_tokens)
        except OverBudgetError as error:
            step.end("skipped", str(error))
            raise

    def _settle(self, taken: Size, used_tokens: int | None) -> None:
        if self.budget is not None:
            self.budget.settle(taken, used_tokens)

    def _call(self, role: str, payload: Payload, *, waits: bool) -> Call:
        """Return the call. Only who has nothing to give yet waits for a quota, or takes any role's answer.

        One with our tools goes to its role alone: they are that role's.
        """
        is_open = waits and not (self.tools and payload.get("tools"))
        if is_open and self.current is None and payload is self.call.payload and role == self.call.targets[0]:
            self.current = self.call  # the one call of most answers
            return self.current
        targets = list(dict.fromkeys([role, *self.call.targets])) if is_open else [role]
        self.current = replace(
            self.call,
            payload=payload,
            targets=targets,
            wait_seconds=self.call.wait_seconds if waits else 0.0,
            ticket=None,
        )
        return self.current


async def _watched(chunks: AsyncGenerator[list[Chunk], None], step: Step) -> AsyncGenerator[list[Chunk], None]:
    """Yield all chunks; however it ends, the step of the trace knows."""
    try:
        async for together in chunks:
            for chunk in together:
                if usage := chunk.get("usage"):
                    step.count(usage)
            yield together
        step.end()
    except EverswarmError as error:
        step.end("failed", str(error))
        raise
    finally:
        if step.ended is None:
            step.end("cut")
        await chunks.aclose()


def _total(step: Step) -> int | None:
    if step.prompt_tokens is None or step.completion_tokens is None:
        return None
    return step.prompt_tokens + step.completion_tokens


def text_of(answered: Answered) -> str:
    """Return what the first choice says."""
    choices = answered.response.get("choices") or [{}]
    content = (choices[0].get("message") or {}).get("content")
    return content if isinstance(content, str) else ""
