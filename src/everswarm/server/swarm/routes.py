"""The OpenAI protocol: any OpenAI client works with `base_url` set to this server's `/v1`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from everswarm.errors import NotFoundError
from everswarm.schemas.server import Scope
from everswarm.schemas.trace import Trace
from everswarm.server.auth import Principal, require
from everswarm.server.database import DatabaseDep
from everswarm.server.feedback.service import answered_interaction
from everswarm.server.gateway import GatewayDep, ServedModel
from everswarm.server.swarm.chat import CHAT_PATH
from everswarm.server.swarm.requests import ChatRequest
from everswarm.server.swarm.routing import SWARM
from everswarm.server.swarm.trace import read_trace

Caller = Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))]

router = APIRouter(prefix="/v1", tags=["swarm"])
interactions = APIRouter(prefix="/api/interactions", tags=["swarm"])


@router.post(
    CHAT_PATH.removeprefix("/v1"), response_model=None, responses={200: {"description": "A chat.completion, or events"}}
)
async def create_chat_completion(_principal: Caller, body: ChatRequest) -> None:
    """Answer a chat. The answer's `id`, also in the header `X-Interaction-Id`, is what `/api/feedback` judges.

    Headers: `X-Everswarm-Priority` (interactive, device, batch), `X-Everswarm-Wait-Seconds` (how long it may wait for
    a spent quota), `X-Everswarm-Cache` (auto: at temperature 0; on; off), `X-Everswarm-Strategy` (auto, single,
    calculate, cascade, vote, split, synthesise), `X-Everswarm-Thread` (new, or the id of a thread: what was said
    before need not be sent).
    """
    raise AssertionError("edge.express answers this path; the route is its documentation")


@interactions.get("/{interaction_id}/trace", response_model_exclude_none=True)
def get_trace(database: DatabaseDep, principal: Caller, interaction_id: str) -> Trace:
    """Who did what for one answer, and why: models, tools, checks, tokens, seconds."""
    return read_trace(answered_interaction(database, principal, interaction_id))


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


def _all_models(gateway: GatewayDep) -> list[ServedModel]:
    return [ServedModel(SWARM, (), "everswarm"), *gateway.models()]


def _model(model: ServedModel) -> dict[str, Any]:
    roles = {"roles": list(model.roles)} if model.roles else {}
    return {"id": model.name, "object": "model", "created": 0, "owned_by": model.owner, **roles}
