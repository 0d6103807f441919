"""Answers one chat with the models of the gateway, and keeps it as an interaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from everswarm.errors import EverswarmError, NotFoundError
from everswarm.identifiers import new_id
from everswarm.llm.protocol import Chunk
from everswarm.server.database import Database
from everswarm.server.gateway import AnsweredStream, Gateway
from everswarm.server.swarm.recording import Asker, Recording
from everswarm.server.swarm.requests import ChatRequest
from everswarm.server.swarm.routing import targets


@dataclass(frozen=True)
class Reply:
    """A whole answer, and the interaction that it is."""

    interaction_id: str
    role: str | None
    completion: dict[str, Any]


@dataclass(frozen=True)
class StreamingReply:
    """An answer as server-sent events, and the interaction that it will be."""

    interaction_id: str
    role: str | None
    events: AsyncIterator[bytes]


async def answer(gateway: Gateway, database: Database, request: ChatRequest, *, asker: Asker) -> Reply:
    """Return the whole answer to `request`; raises what `Gateway.chat` raises.

    When cancelled, because the reader left, the work upstream ends and the interaction is stored as cut.
    """
    payload = request.payload()
    recording = Recording(database, id=new_id(), asker=asker, messages=payload["messages"])
    async with _failure_stored(recording):
        answered = await gateway.chat(payload, targets=_targets(gateway, payload))
    recording.answered_by(answered.endpoint, answered.model, answered.role)
    recording.take(answered.response)
    await recording.store("complete")
    return Reply(recording.id, answered.role, {**answered.response, "id": recording.id})


async def stream(gateway: Gateway, database: Database, request: ChatRequest, *, asker: Asker) -> StreamingReply:
    """Return the answer to `request` as it comes; raises what `Gateway.chat_stream` raises, before the first event."""
    payload = request.payload()
    recording = Recording(database, id=new_id(), asker=asker, messages=payload["messages"])
    async with _failure_stored(recording):
        answered = await gateway.chat_stream(payload, targets=_targets(gateway, payload))
    recording.answered_by(answered.endpoint, answered.model, answered.role)
    events = _events(answered, recording, wants_usage=request.wants_usage)
    return StreamingReply(recording.id, answered.role, events)


@asynccontextmanager
async def _failure_stored(recording: Recording) -> AsyncIterator[None]:
    """Store a call that ends before its first token; one that no model was asked for is none."""
    try:
        yield
    except asyncio.CancelledError:
        recording.store_soon("cut")
        raise
    except NotFoundError:
        raise
    except EverswarmError:
        await recording.store_failure()
        raise


def _targets(gateway: Gateway, payload: dict[str, Any]) -> list[str]:
    served = [model.name for model in gateway.models()]
    return targets(payload.get("model", "everswarm"), payload["messages"], served)


async def _events(answered: AnsweredStream, recording: Recording, *, wants_usage: bool) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events; however the stream ends, the interaction is stored, before the last event if it can."""
    try:
        async for chunk in answered.chunks:
            recording.take(chunk)
            if chunk.get("choices") or wants_usage:
                yield _event({**chunk, "id": recording.id})
        await recording.store("complete")
        yield b"data: [DONE]\n\n"
    except EverswarmError as error:
        recording.store_soon("failed")
        yield _event({"error": {"message": str(error), "type": "server_error", "code": error.status, "param": None}})
    finally:
        # reached by cancellation too, when awaiting is over: what was not stored above was cut by the reader
        recording.store_soon("cut")
        _close_soon(answered.chunks)


_closing: set[asyncio.Task[None]] = set()


def _close_soon(chunks: AsyncGenerator[Chunk, None]) -> None:
    task = asyncio.create_task(chunks.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
