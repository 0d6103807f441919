"""`POST /api/escalations`: a device asks the swarm again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from everswarm.schemas.escalation import Escalated, Escalation
from everswarm.schemas.gateway import Priority
from everswarm.schemas.interaction import Message
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, require
from everswarm.server.database import Database, DatabaseDep
from everswarm.server.feedback.reading import printable, storable
from everswarm.server.fleet.repository import device_of_key
from everswarm.server.swarm.escalation import AnsweredEscalation, Escalations
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import Chat, read_wishes
from everswarm.server.swarm.routing import SWARM
from everswarm.server.swarm.service import SwarmDep

router = APIRouter(prefix="/api", tags=["swarm"])

Caller = Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))]


async def _escalations_of(request: Request) -> Escalations:
    escalations: Escalations = request.app.state.escalations
    return escalations


EscalationsDep = Annotated[Escalations, Depends(_escalations_of)]


@router.post("/escalations")
async def escalate(
    request: Request,
    escalations: EscalationsDep,
    database: DatabaseDep,
    swarm: SwarmDep,
    principal: Caller,
    escalation: Escalation,
) -> Escalated:
    """Answer a question that a device's own small model has answered, or could not; send the same `id` to ask again.

    With `consent` the attempt and the swarm's answer become training material. `interaction_id` is what
    `/api/feedback` judges. Headers as for a chat, such as `X-Everswarm-Wait-Seconds`.
    """
    wishes = read_wishes(request.headers.raw)._replace(thread=None)  # a question of its own
    priority = Priority.DEVICE if principal.scope is Scope.DEVICE else Priority.INTERACTIVE

    async def answer(messages: Sequence[Message], max_tokens: int | None) -> AnsweredEscalation:
        payload = {"model": SWARM, "messages": [message.model_dump() for message in messages]}
        chat = Chat(payload | ({"max_tokens": max_tokens} if max_tokens else {}), False, False, None)
        turn = await swarm.begin(chat, asker=Asker(principal.user), wishes=wishes, priority=priority)
        answered = await swarm.answer(turn)
        choice = answered.response["choices"][0]
        return AnsweredEscalation(
            interaction_id=answered.response["id"],
            response=storable(printable(choice["message"].get("content") or "")) or "",
            is_whole=choice.get("finish_reason") != "length",
            role=answered.role,
            strategy=turn.run.trace.strategy,
            model=answered.model,
        )

    asker = await run_in_threadpool(_asker, database, principal)
    return await escalations.escalate(escalation, asker=asker, answer=answer)


def _asker(database: Database, principal: Principal) -> Asker:
    """Name the device as its uploads do, so that curation sees one person and not two."""
    with database.read() as connection:
        device_id = device_of_key(connection, principal.key_id)
    return Asker(principal.user) if device_id is None else Asker(device_id, sender=principal.user)
