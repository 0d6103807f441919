"""`/api/health` and `/api/overview`."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from everswarm.schemas.server import Health, Scope
from everswarm.server.auth import require
from everswarm.server.database import DatabaseDep
from everswarm.server.reports import service
from everswarm.server.reports.repository import database_answers
from everswarm.server.reports.service import Overview

router = APIRouter(prefix="/api", tags=["reports"])


@router.get("/health")
def health(request: Request, database: DatabaseDep) -> Health:
    """How the server is. Needs no key."""
    state = request.app.state
    return service.health_of(
        endpoints=state.gateway.states_in_short(),
        cycles=state.cycles.state,
        database_answers=database_answers(database),
    )


@router.get("/overview", dependencies=[Depends(require(*Scope))])
def overview(request: Request, database: DatabaseDep) -> Overview:
    """How much there is, the last cycles, and what to do next."""
    return service.overview_of(database, needed=request.app.state.settings.cycle.minimum_examples)
