"""`/api/quotas` and `/metrics`: how much the endpoints may still be asked, and what they were asked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Response

from everswarm.schemas.gateway import QuotaView
from everswarm.server.auth import PrincipalDep
from everswarm.server.gateway.service import GatewayDep

router = APIRouter(tags=["gateway"])


@router.get("/api/quotas")
async def list_quotas(gateway: GatewayDep, _principal: PrincipalDep) -> list[QuotaView]:
    """Every endpoint with its state and what is left of each limit."""
    return await gateway.quotas()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def show_metrics(
    gateway: GatewayDep, _principal: PrincipalDep, accept: Annotated[str, Header()] = ""
) -> Response:
    """The numbers of this process for Prometheus. It sends a key too: `authorization: {credentials_file: …}`."""
    scrape = gateway.metrics.render(accept)
    return Response(scrape.body, media_type=scrape.content_type)
