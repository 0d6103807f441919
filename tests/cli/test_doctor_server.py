"""`everswarm doctor` while a server runs on this home: what the server uses, and how it sees it, is what counts."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.local_server import LocalServer
from tests.fakes.told_server import ToldServer, view
from tests.fakes.upstream import FakeUpstream

from everswarm.cli.local import announce, write_private
from everswarm.client import EverswarmClient
from everswarm.schemas.gateway import LimitView
from everswarm.settings import WEB_ROLES
from everswarm.settings.swarm import ToolServerSettings

Doctor = Callable[..., Any]
DEAD = {"name": "dead", "base_url": "http://127.0.0.1:1/v1", "model": "org/model"}


def remote(upstream: FakeUpstream, **said: Any) -> dict[str, Any]:
    return {"name": "up", "base_url": upstream.base_url, "model": "org/model", **said}


def test_running_server_is_found_and_its_port_is_no_problem(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, home: Path, upstream: FakeUpstream
) -> None:
    server = LocalServer(home)  # without any endpoint, and its cycles never begin
    server.start()
    announce(server.settings, url=server.url)
    write_private(home / "cli.key", server.key)
    monkeypatch.setenv("EVERSWARM_PORT", str(server.port))
    result = doctor(remote(upstream))
    found = result.check("server process")
    server.close()
    assert f"runs at {server.url}, version " in found["text"]
    assert (result.code, found["level"]) == (1, "failed")
    assert "degraded: endpoints: none is configured; enable [engine]" in found["text"]
    assert result.data["endpoints"] == [], "what the server does not have does not count"
    assert result.check("endpoints")["level"] == "note"


def test_server_that_agrees_leaves_nothing_to_mend(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    limit = LimitView(
        unit="tokens", window_seconds=3600.0, amount=9_000, used=1_000, held=0, left=8_000, source="headers"
    )
    with ToldServer(home, view(limits=[limit])):
        result = doctor(remote(upstream))
        page = doctor(options=()).out
    assert (result.code, result.data["server"]["status"]) == (0, "healthy")
    row = result.endpoint("up")
    assert (row["state"], row["limits"][0]["left"], row["latency_ms"] > 0) == ("operational", 8_000, True)
    assert "Everything that is needed works." in page


def test_what_the_server_says_of_an_endpoint_wins_over_the_probe(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    state = "the endpoint 'up' refuses our credential (401: no). The operator must set another."
    with ToldServer(home, view(state=state)):
        result = doctor(remote(upstream))
    row = result.endpoint("up")
    assert (result.code, row["state"], row["can_answer"]) == (1, "refuses us", False)
    assert row["problem"] == "The server says: refuses our credential (401: no). The operator must set another."


def test_endpoint_that_the_server_holds_closed_cannot_answer_until_then(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    until, reason = datetime(2090, 1, 2, 3, 4, tzinfo=UTC), "the endpoint 'up' takes no more requests now (402: none)."
    with ToldServer(home, view(state=f"closed until …: {reason}", closed_until=until, closed_reason=reason)):
        result = doctor(remote(upstream))
    row = result.endpoint("up")
    assert (result.code, row["state"], result.data["silent_roles"]) == (1, "closed", list(WEB_ROLES))
    assert row["problem"] == "Closed until 2090-01-02 03:04 UTC. Takes no more requests now (402: none)."


def test_server_with_other_endpoints_than_the_settings_is_what_counts(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    with ToldServer(home, view("elsewhere", model="org/other")):
        result = doctor(DEAD, remote(upstream))
        page = doctor(options=()).out
    assert [(row["name"], row["model"], row["can_answer"]) for row in result.data["endpoints"]] == [
        ("elsewhere", "org/other", True)
    ]
    assert (result.code, result.check("endpoints")["level"]) == (0, "note")
    assert re.search(r"! endpoints +the server's, started with --profile or with other settings", page)


def test_credential_that_only_the_server_has_is_no_problem(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    with ToldServer(home, view()):
        result = doctor(remote(upstream, api_key_env="ONLY_OF_THE_SERVER"))
    assert (result.code, result.endpoint("up")["state"]) == (0, "operational")


def test_server_that_is_degraded_is_exit_1_with_the_reason(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    with ToldServer(home, view(), status="degraded", problems=["cycles: failed; the server's log says why"]):
        result = doctor(remote(upstream))
        page = doctor(options=()).out
    assert result.code == 1
    assert "degraded: cycles: failed; the server's log says why" in result.check("server process")["text"]
    assert "Everything that is needed works." not in page


def test_what_the_server_says_of_its_tool_servers_is_shown(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, home: Path, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_TOOLS", '{"new": {"command": ["no-such-program"]}}')
    said = {"files": "operational", "late": "starting…", "search": "refuses us"}
    problems = ["tool server search: refuses us"]
    with ToldServer(home, view(), status="degraded", problems=problems, tool_servers=said):
        result = doctor(remote(upstream))
    levels = {name: result.check(f"tools.{name}")["level"] for name in (*said, "new")}
    assert levels == {"files": "ok", "late": "note", "search": "failed", "new": "note"}
    assert (result.code, result.check("tools.search")["text"]) == (1, "the server says: refuses us")
    assert result.check("server process")["text"].endswith("degraded: see tools")


def test_key_of_this_home_brings_all_that_the_server_knows_of_its_tool_servers(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    server = LocalServer(home)
    server.settings.tools = {"lab": ToolServerSettings(url="http://127.0.0.1:1/mcp", token_env="LAB_TOKEN")}
    server.start()
    announce(server.settings, url=server.url)
    write_private(home / "cli.key", server.key)
    with EverswarmClient(server.url) as stranger:
        until(lambda: stranger.health().tool_servers["lab"] == "not started")
    result = doctor(remote(upstream))
    server.close()
    said = "the server says: not started: the variable LAB_TOKEN is not set; set it and restart"
    assert (result.code, result.check("tools.lab")["text"]) == (1, said)


def until(is_so: Callable[[], bool]) -> None:
    for _attempt in range(600):
        if is_so():
            return
        time.sleep(0.05)
    pytest.fail("it never was so")


def test_server_that_refuses_the_key_of_this_home_is_exit_1(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    with ToldServer(home, view(), key="esw_revoked"):
        result = doctor(remote(upstream))
    assert (result.code, result.endpoint("up")["state"]) == (1, "operational")
    assert "it does not say which endpoints it uses: no such key" in result.check("server process")["text"]
    assert "esw_revoked" not in result.out + result.err
