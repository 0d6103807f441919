"""The OpenAI protocol: any OpenAI client works with `base_url` set to this server's `/v1`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from everswarm.errors import NotFoundError
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, require
from everswarm.server.database import DatabaseDep
from everswarm.server.gateway import GatewayDep, ServedModel
from everswarm.server.swarm import service
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import ChatRequest
from everswarm.server.swarm.routing import SWARM

router = APIRouter(prefix="/v1", tags=["swarm"])

Caller = Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))]
READER_LEFT = 499  # as nginx calls it; nobody reads it

T = TypeVar("T")


@router.post("/chat/completions", response_model=None, responses={200: {"description": "A chat.completion, or events"}})
async def create_chat_completion(
    request: Request, gateway: GatewayDep, database: DatabaseDep, principal: Caller, body: ChatRequest
) -> Response:
    """Answer a chat. The answer's `id`, also in the header `X-Interaction-Id`, is what `/api/feedback` judges."""
    if body.stream:
        streaming = await service.stream(gateway, database, body, asker=_asker(principal, body))
        return StreamingResponse(
            streaming.events,
            media_type="text/event-stream",
            headers={
                **_headers(streaming.interaction_id, streaming.role),
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # a proxy must not hold events back
            },
        )
    reply = await _unless_reader_leaves(request, service.answer(gateway, database, body, asker=_asker(principal, body)))
    if reply is None:
        return Response(status_code=READER_LEFT)
    content = json.dumps(reply.completion, separators=(",", ":"))
    return Response(content, media_type="application/json", headers=_headers(reply.interaction_id, reply.role))


@router.get("/models")
async def list_models(gateway: GatewayDep, _principal: Caller) -> dict[str, Any]:
    """List what `model` may be: `everswarm`, the roles, and the full names of models."""
    return {"object": "list", "data": [_model(model) for model in _all_models(gateway)]}


@router.get("/models/{name:path}")
async def get_model(gateway: GatewayDep, _principal: Caller, name: str) -> dict[str, Any]:
    """Describe one model."""
    found = next((model for model in _all_models(gateway) if model.name == name), None)
    if found is None:
        raise NotFoundError(f"There is no model '{name}' here. GET /v1/models lists those that are.")
    return _model(found)


async def _unless_reader_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` gives; None, and `work` cancelled, when the reader closes the connection before."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_reader_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()


async def _reader_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _asker(principal: Principal, body: ChatRequest) -> Asker:
    """An administrator's application may name the person that it asks for; nobody else writes in another's name."""
    if principal.scope is Scope.ADMIN and body.user:
        return Asker(body.user, sender=principal.user)
    return Asker(principal.user)


def _headers(interaction_id: str, role: str | None) -> dict[str, str]:
    return {"X-Interaction-Id": interaction_id, **({"X-Everswarm-Role": role} if role else {})}


def _all_models(gateway: GatewayDep) -> list[ServedModel]:
    return [ServedModel(SWARM, (), "everswarm"), *gateway.models()]


def _model(model: ServedModel) -> dict[str, Any]:
    roles = {"roles": list(model.roles)} if model.roles else {}
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.owner, **roles}
