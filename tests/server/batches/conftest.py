"""A server on loopback with a scripted upstream, and what is done with batches again and again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tests.fakes.upstream import FakeUpstream
from tests.server.batches.serving import Serving, json_lines, wait_until

from everswarm.server import app as app_module
from everswarm.settings import EndpointSettings, Settings


@pytest.fixture
def upstream():
    with FakeUpstream() as running:
        yield running


@pytest.fixture
def serve(monkeypatch, upstream, tmp_path):
    """Return a function that starts a server on the one home of the test."""
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)  # the workflow engine has tests of its own
    running = []

    def start() -> Serving:
        endpoint = EndpointSettings(name="up", base_url=upstream.base_url, model="org/model", timeout_seconds=30)
        running.append(Serving(Settings(home=tmp_path / "home", endpoints=[endpoint])))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def batch_of():
    """Functions of the official client, put together."""

    def begin(client, *lines, **options):
        given = client.files.create(file=("in.jsonl", json_lines(*lines)), purpose="batch")
        asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **options}
        return client.batches.create(input_file_id=given.id, **asked)

    def ended(client, batch_id):
        def look():
            batch = client.batches.retrieve(batch_id)
            return batch if batch.status in ("completed", "failed", "expired", "cancelled") else None

        return wait_until(look)

    def lines_of(client, file_id):
        text = client.files.content(file_id).text
        return [json.loads(line) for line in text.splitlines()]

    return SimpleNamespace(begin=begin, ended=ended, lines=lines_of)
