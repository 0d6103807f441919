"""A server on loopback with scripted models."""

from __future__ import annotations

import pytest
from tests.fakes.upstream import FakeUpstream
from tests.flow.served_gateway import ServedGateway, until
from tests.server.swarm_turns.asking import endpoint

from everswarm.settings import EndpointSettings, Settings


@pytest.fixture
def upstream():
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def serve(tmp_path, upstream):
    """Return a function that serves `settings` on the home of the test, by default with one endpoint for all roles."""
    running = []

    def start(*endpoints: EndpointSettings, **settings) -> ServedGateway:
        table = list(endpoints) or [endpoint(upstream, "up")]
        running.append(ServedGateway(Settings(home=tmp_path / "home", endpoints=table, **settings)))
        running[-1].start()
        gateway = running[-1].app.state.gateway
        until(lambda: set(gateway.states().values()) == {"operational"}, what="a reachable endpoint")
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def three_models(serve, upstream):
    """A server whose roles have each a model of their own, all said by the one upstream."""
    models = {"primary": "org/model", "coordinator": "org/one", "specialist": "org/two"}

    def start(**settings) -> ServedGateway:
        table = [endpoint(upstream, role, model=model, roles=[role]) for role, model in models.items()]
        return serve(*table, **settings)

    return start
