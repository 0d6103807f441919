"""A gateway on the home of the test, asked over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.flow.served_gateway import ServedGateway, until

from everswarm.settings import EndpointSettings, GatewaySettings, Settings


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServedGateway]]:
    """Return a function that serves endpoints, on the one home of the test, and waits until they can be asked."""
    running: list[ServedGateway] = []

    def start(*endpoints: EndpointSettings, gateway: GatewaySettings | None = None) -> ServedGateway:
        settings = Settings(home=tmp_path / "home", endpoints=list(endpoints), gateway=gateway or GatewaySettings())
        server = ServedGateway(settings)
        running.append(server)
        server.start()
        until(lambda: set(server.app.state.gateway.states().values()) == {"operational"}, what="a reachable endpoint")
        return server

    yield start
    for server in running:
        server.stop()
