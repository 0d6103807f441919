"""Answers chats with the models of the gateway, and keeps each as an interaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from everswarm.errors import EverswarmError, NotFoundError
from everswarm.identifiers import new_id
from everswarm.llm.protocol import Chunk, Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.database import Database
from everswarm.server.gateway import Answered, AnsweredStream, Call, Gateway
from everswarm.server.swarm.recording import Asker, Recording
from everswarm.server.swarm.requests import Chat, ChatRequest, Wishes
from everswarm.server.swarm.routing import SWARM, targets


class Turn(NamedTuple):
    """One chat on its way: the call to the gateway, and the record of it."""

    call: Call
    recording: Recording
    wants_usage: bool


def begin(
    gateway: Gateway, database: Database, chat: Chat, *, asker: Asker, wishes: Wishes, priority: Priority
) -> Turn:
    """Return `chat` as a call. Nothing is sent yet.

    Args:
        gateway: the models.
        database: where the interaction will be.
        chat: what was asked.
        asker: for whom.
        wishes: what the headers say; they win.
        priority: where they say none; none is served before this.

    Raises:
        EverswarmError: what is answered could not be stored now, because the disk is full, say.
    """
    if database.write_problem is not None:
        raise database.write_problem
    recording = Recording(database, asker=asker, messages=chat.payload["messages"])
    wait_seconds = gateway.wait_seconds if wishes.wait_seconds is None else wishes.wait_seconds
    call = Call(
        payload=chat.payload,
        targets=_targets(gateway, chat.payload),
        user=asker.user,
        priority=_lower(wishes.priority or priority, priority),
        wait_seconds=wait_seconds,
        cache=wishes.cache,
        interaction_id=recording.id,
    )
    return Turn(call, recording, chat.wants_usage)


async def answer(gateway: Gateway, turn: Turn) -> Answered:
    """Return the whole answer, its id that of the interaction; raises what `Gateway.chat` raises.

    When cancelled, because the reader left, the work upstream ends and the interaction is stored as cut.
    """
    recording = turn.recording
    try:
        answered = await gateway.chat(turn.call)
    except BaseException as error:
        _store_failure(recording, error)
        raise
    recording.answered_by(answered.endpoint, answered.model, answered.role)
    recording.take(answered.response)
    recording.store("complete")
    return Answered(
        answered.endpoint,
        answered.model,
        answered.role,
        {**answered.response, "id": recording.id},
        answered.cached,
    )


async def answer_stream(gateway: Gateway, turn: Turn) -> AnsweredStream:
    """Return the answer as it comes; raises what `Gateway.chat_stream` raises, before the first piece."""
    try:
        answered = await gateway.chat_stream(turn.call)
    except BaseException as error:
        _store_failure(turn.recording, error)
        raise
    turn.recording.answered_by(answered.endpoint, answered.model, answered.role)
    chunks = _recorded(answered, turn)
    return AnsweredStream(answered.endpoint, answered.model, answered.role, chunks, answered.cached)


async def answer_batched(gateway: Gateway, request: ChatRequest, *, user: str) -> dict[str, Any]:
    """Return the `chat.completion` for one request of a batch of `user`; raises what `Gateway.chat` raises.

    Where no quota is left it is refused with when to ask again, and parks where it comes from. It is no interaction:
    only its usage is stored.
    """
    payload = request.model_dump(exclude_unset=True)
    call = Call(payload, _targets(gateway, payload), user=user, priority=Priority.BATCH, wait_seconds=0.0)
    answered = await gateway.chat(call)
    return {**answered.response, "id": f"chatcmpl-{new_id()}"}


def _store_failure(recording: Recording, error: BaseException) -> None:
    """Store a chat that ends before its first token; one that no model was asked for is none."""
    if isinstance(error, asyncio.CancelledError):
        recording.store("cut")
    elif isinstance(error, EverswarmError) and not isinstance(error, NotFoundError):
        recording.store("failed")


async def _recorded(answered: AnsweredStream, turn: Turn) -> AsyncGenerator[list[Chunk], None]:
    """Yield what the reader asked for; however the stream ends, the interaction is stored, before its end if it can."""
    recording, wants_usage = turn.recording, turn.wants_usage
    try:
        async for together in answered.chunks:
            shown = []
            for chunk in together:
                recording.take(chunk)
                if chunk.get("choices") or wants_usage:
                    shown.append({**chunk, "id": recording.id})
            if shown:
                yield shown
        recording.store("complete")
    except EverswarmError:
        recording.store("failed")
        raise
    finally:
        try:
            recording.store("cut")  # by its reader, if it was not stored above
        finally:
            await answered.chunks.aclose()


def _lower(wished: Priority, allowed: Priority) -> Priority:
    order = list(Priority)
    return max(wished, allowed, key=order.index)


def _targets(gateway: Gateway, payload: Payload) -> list[str]:
    model = payload.get("model", SWARM)
    if model != SWARM:
        return [model]
    return targets(SWARM, payload["messages"], gateway.roles)
