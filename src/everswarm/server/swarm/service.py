"""Answers chats with the models of the gateway, and keeps each as an interaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from everswarm.errors import EverswarmError, NotFoundError
from everswarm.identifiers import new_id
from everswarm.llm.protocol import Chunk
from everswarm.schemas.gateway import Priority
from everswarm.server.database import Database
from everswarm.server.gateway import Answered, AnsweredStream, Call, Gateway
from everswarm.server.gateway.completions import as_chunks
from everswarm.server.swarm.classifier import load as load_classifier
from everswarm.server.swarm.decision import worst_case_tokens as decision_tokens
from everswarm.server.swarm.recording import Asker, Recording
from everswarm.server.swarm.requests import Chat, ChatRequest, Wishes
from everswarm.server.swarm.run import Reply
from everswarm.server.swarm.spans import emit, open_tracer
from everswarm.server.swarm.strategies import answer as answer_by_strategy
from everswarm.server.swarm.strategies import declared_tokens
from everswarm.server.swarm.tools.calculator import CALCULATOR
from everswarm.server.swarm.tools.clock import CLOCK
from everswarm.server.swarm.tools.documents import documents_tool
from everswarm.server.swarm.tools.mcp_servers import ToolServers
from everswarm.server.swarm.tools.toolbox import Toolbox
from everswarm.server.swarm.trace import Traced, is_model_call
from everswarm.server.swarm.turns import Planner, Turn
from everswarm.server.threads import append_turns, drop_empty_thread
from everswarm.settings import Settings

ROUTER_FILE = "router.json"  # in the home: what was learnt from logged outcomes
NO_WISHES = Wishes()


class Swarm:
    """The models of this server, as they answer together."""

    def __init__(self, gateway: Gateway, database: Database, settings: Settings) -> None:
        """Prepare; `start` brings the servers of tools up."""
        self.servers = ToolServers(settings.tools, log_folder=settings.home / "logs")
        self._gateway, self._database, self._tracer = gateway, database, open_tracer()
        self._deadline_seconds = settings.swarm.deadline_seconds
        self._planner = Planner(
            gateway,
            database,
            roles=settings.roles,
            settings=settings.swarm,
            toolbox=Toolbox([CALCULATOR, CLOCK, documents_tool(database)], self.servers),
            tool_servers=settings.tools,
            classifier=load_classifier(router_path(settings)),
        )

    async def start(self) -> None:
        """Begin to bring the servers of tools up; return at once."""
        self.servers.start()

    async def close(self) -> None:
        """Stop the servers of tools."""
        await self.servers.close()

    async def begin(self, chat: Chat, *, asker: Asker, wishes: Wishes, priority: Priority) -> Turn:
        """Return `chat` with the decision who answers it. No model is asked yet.

        Args:
            chat: what was asked.
            asker: for whom.
            wishes: what the headers say; they win.
            priority: where they say none; none is served before this.

        Raises:
            EverswarmError: what is answered could not be stored now, because the disk is full, say.
            BadRequestError: what is wished cannot be.
            NotFoundError: there is no such thread.
        """
        if self._database.write_problem is not None:
            raise self._database.write_problem
        recording = Recording(self._database, asker=asker, messages=chat.payload["messages"])
        call = Call(
            payload=chat.payload,
            targets=(),
            user=asker.user,
            priority=_lower(wishes.priority or priority, priority),
            wait_seconds=self._gateway.wait_seconds if wishes.wait_seconds is None else wishes.wait_seconds,
            cache=wishes.cache,
            interaction_id=recording.id,
        )
        run = self._planner.plan(call, wishes, streams=chat.streams)
        recording.trace = run.trace
        if self._tracer is not None:
            recording.on_end = partial(emit, self._tracer, run.trace, interaction_id=recording.id)
        turn = Turn(run, recording, chat.wants_usage)
        if wishes.thread is not None:
            await self._planner.open_thread(turn, wishes.thread)
            if turn.thread is not None:
                recording.thread_id = turn.thread.thread_id
                # one that begins here nobody else can delete before its id is told
                recording.thread_is_stored = not turn.thread.is_new and not turn.begins_thread
        return turn

    async def answer(self, turn: Turn) -> Answered:
        """Return the whole answer, its id that of the interaction; raises what `Gateway.chat` raises.

        When cancelled, because the reader left, the work upstream ends and the interaction is stored as cut.
        """
        try:
            answered = await self._reply(turn)
        except BaseException as error:
            _store_failure(turn.recording, error)
            raise
        if isinstance(answered, AnsweredStream):
            raise AssertionError("a whole answer was asked for")
        recording = turn.recording
        if recording is None:
            return answered
        recording.answered_by(answered.endpoint, answered.model, answered.role)
        recording.take(answered.response)
        recording.store("complete")
        await self._keep_in_thread(turn)
        return answered

    async def answer_stream(self, turn: Turn) -> AnsweredStream:
        """Return the answer as it comes; raises what `Gateway.chat_stream` raises, before the first piece."""
        try:
            answered = await self._reply(turn)
        except BaseException as error:
            _store_failure(turn.recording, error)
            raise
        if isinstance(answered, Answered):
            answered = _as_stream(answered)
        assert turn.recording is not None
        turn.recording.answered_by(answered.endpoint, answered.model, answered.role)
        chunks = self._recorded(answered, turn, turn.recording)
        return AnsweredStream(answered.endpoint, answered.model, answered.role, chunks, answered.cached)

    async def forget_thread(self, turn: Turn) -> None:
        """Delete the thread that `turn` began, if its id was told to nobody and nothing was said in it."""
        if turn.begins_thread and turn.thread is not None:
            with contextlib.suppress(EverswarmError):  # a full disk, or it is gone: what went wrong before is told
                await run_in_threadpool(
                    drop_empty_thread, self._database, turn.thread.thread_id, user=turn.run.call.user
                )

    async def answer_batched(self, request: ChatRequest, *, user: str) -> dict[str, Any]:
        """Return the `chat.completion` for one request of a batch of `user`; raises what `Gateway.chat` raises.

        Where no quota is left it is refused with when to ask again, and parks where it comes from. It is no
        interaction: only its usage is stored.
        """
        payload = request.model_dump(exclude_unset=True)
        answered, _ = await self.try_out(Call(payload, (), user=user, priority=Priority.BATCH, wait_seconds=0.0))
        return {**answered.response, "id": f"chatcmpl-{new_id()}"}

    async def try_out(self, call: Call, wishes: Wishes = NO_WISHES) -> tuple[Answered, Traced]:
        """Return the whole answer and how it came about; it is no interaction. Raises as `answer` does."""
        turn = Turn(self._planner.plan(call, wishes, streams=False), None)
        reply = await self._reply(turn)
        assert isinstance(reply, Answered)
        return reply, turn.run.trace

    def worst_case_tokens(self, call: Call, wishes: Wishes = NO_WISHES) -> int:
        """Return the most tokens that the answer may cost, by the estimate; nothing is sent."""
        run = self._planner.plan(call, wishes, streams=False)
        return declared_tokens(run) + (decision_tokens(run) if self._planner.may_decide(run) else 0)

    async def _reply(self, turn: Turn) -> Reply:
        """Return the answer of the strategy; a whole one with the interaction's id, and what all its calls cost."""
        run = turn.run
        if "documents" in run.route.lookups:
            await self._planner.find_documents(run)
        if self._planner.may_decide(run):
            await self._planner.decide(run)
        if turn.thread is not None and not run.needs_no_model:
            await self._planner.go_on(run, turn.thread)
            if turn.recording is not None:
                turn.recording.messages = run.call.payload["messages"]
        reply = await answer_by_strategy(run, deadline_seconds=self._deadline_seconds)
        if isinstance(reply, Answered):
            response = dict(reply.response)
            if turn.recording is not None:
                response["id"] = turn.recording.id
            if run.trace.model_calls > 1:
                response["usage"] = _usage(run.trace)
            return Answered(reply.endpoint, reply.model, reply.role, response, reply.cached and _is_free(run.trace))
        return reply

    async def _recorded(
        self, answered: AnsweredStream, turn: Turn, recording: Recording
    ) -> AsyncGenerator[list[Chunk], None]:
        """Yield what the reader asked for; however it ends, the interaction is stored, before the end if can be."""
        several = turn.run.trace.model_calls > 1
        try:
            async for together in answered.chunks:
                shown = []
                for chunk in together:
                    told = {**chunk, "id": recording.id}  # a copy: others may read this chunk too
                    if several and chunk.get("usage"):
                        told["usage"] = _usage(turn.run.trace)
                    recording.take(told)
                    if chunk.get("choices") or turn.wants_usage:
                        shown.append(told)
                if shown:
                    yield shown
            recording.store("complete")
            await self._keep_in_thread(turn)
        except EverswarmError:
            recording.store("failed")
            raise
        finally:
            try:
                recording.store("cut")  # by its reader, if it was not stored above
            finally:
                await answered.chunks.aclose()

    async def _keep_in_thread(self, turn: Turn) -> None:
        if turn.thread is None or turn.recording is None:
            return
        if not turn.recording.text:  # it calls the client's tools: what comes of it is sent again, with the question
            if turn.thread.is_new:
                turn.thread = None  # nothing is stored, so no id is told
            return
        await run_in_threadpool(
            append_turns,
            self._database,
            user=turn.run.call.user,
            thread_id=turn.thread.thread_id,
            question=turn.run.question,
            answer=turn.recording.text,
            interaction_id=turn.recording.id,
            is_new=turn.thread.is_new,
        )


def router_path(settings: Settings) -> Path:
    """Return where the router that was learnt from logged outcomes is kept."""
    return settings.home / ROUTER_FILE


async def _swarm_of(request: Request) -> Swarm:
    swarm: Swarm = request.app.state.swarm
    return swarm


SwarmDep = Annotated[Swarm, Depends(_swarm_of)]


def _as_stream(answered: Answered) -> AnsweredStream:
    """Return a whole answer as a stream."""

    async def replay() -> AsyncGenerator[list[Chunk], None]:
        for chunk in as_chunks(answered.response):
            yield [chunk]

    return AnsweredStream(answered.endpoint, answered.model, answered.role, replay(), answered.cached)


def _store_failure(recording: Recording | None, error: BaseException) -> None:
    """Store a chat that ends before its first token; one that no model was asked for is none."""
    if recording is None:
        return
    if isinstance(error, asyncio.CancelledError):
        recording.store("cut")
    elif isinstance(error, EverswarmError) and not isinstance(error, NotFoundError):
        recording.store("failed")


def _usage(trace: Traced) -> dict[str, int]:
    """Return what all calls of an answer cost together."""
    prompt, answer = trace.prompt_tokens, trace.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _is_free(trace: Traced) -> bool:
    """Say whether every call was answered from the cache."""
    return all(step.cached for step in trace.steps if is_model_call(step))


def _lower(wished: Priority, allowed: Priority) -> Priority:
    order = list(Priority)
    return max(wished, allowed, key=order.index)
