"""`/api/health` and `/api/overview`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request
from sqlalchemy.exc import SQLAlchemyError

from everswarm.errors import EverswarmError
from everswarm.schemas.server import Health, Scope
from everswarm.server.auth import authorise, require
from everswarm.server.database import Database, DatabaseDep
from everswarm.server.reports import service
from everswarm.server.reports.repository import database_answers
from everswarm.server.reports.service import Overview

router = APIRouter(prefix="/api", tags=["reports"])


@router.get("/health")
async def health(request: Request, database: DatabaseDep) -> Health:
    """How the server is. Needs no key; a key for people or of an operator brings all that is known of tool servers."""
    state = request.app.state
    tools = state.swarm.servers.states()
    if tools and not await _may_know_all(request, database):
        tools = service.tools_in_short(tools)
    return service.health_of(
        endpoints=state.gateway.states_in_short(),
        cycles=state.cycles.state,
        database_answers=await asyncio.to_thread(database_answers, database),
        tool_servers=tools,
    )


@router.get("/overview", dependencies=[Depends(require(*Scope))])
def overview(request: Request, database: DatabaseDep) -> Overview:
    """How much there is, the last cycles, and what to do next."""
    return service.overview_of(database, needed=request.app.state.settings.cycle.minimum_examples)


async def _may_know_all(request: Request, database: Database) -> bool:
    try:
        await authorise(request.headers.raw, database, Scope.ADMIN, Scope.USER)
    except (EverswarmError, SQLAlchemyError):  # health is told in short, whatever is wrong with a key or the database
        return False
    return True
