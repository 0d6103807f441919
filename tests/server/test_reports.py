from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import everswarm
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.job import CycleParameters, Stage
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import DeviceEnrolment
from everswarm.server.auth import Principal, create_key
from everswarm.server.cycles import repository as cycles
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.feedback import store_batch
from everswarm.server.fleet import enrol_device, publish_release
from everswarm.server.reports.routes import router
from everswarm.server.reports.service import health_of, tools_in_short
from everswarm.settings import Settings

NEEDED = 24


@pytest.fixture
def client(database: Database) -> TestClient:
    app = FastAPI()
    app.state.database = database
    app.state.settings = Settings()
    app.state.gateway = SimpleNamespace(states_in_short=lambda: {"embedded": "operational"})
    app.state.cycles = SimpleNamespace(state="ready")
    app.state.swarm = SimpleNamespace(servers=SimpleNamespace(states=dict))
    install_error_handlers(app)
    app.include_router(router)
    return TestClient(app)


def overview(client: TestClient, database: Database) -> dict[str, Any]:
    made = create_key(database, scope=Scope.WORKER, label="any key")
    found: dict[str, Any] = client.get("/api/overview", headers={"Authorization": f"Bearer {made.key}"}).json()
    return found


def correct(database: Database, count: int, *, people: int = 3) -> None:
    fields = {"timestamp": 0, "messages": [{"role": "user", "content": "?"}], "consent": True}
    records = [
        JudgedInteraction.model_validate({**fields, "id": f"i{n}", "device_id": f"dev-{n % people}", "correction": "!"})
        for n in range(count)
    ]
    store_batch(database, records, source="import")


def add_cycle(database: Database, cycle_id: str, *, state: str) -> None:
    now = datetime.now(UTC)
    with database.transaction() as connection:
        parameters = CycleParameters(student="tiny")
        cycles.insert_cycle(connection, cycle_id, parameters=parameters, trigger="manual", created_at=now)
        cycles.insert_stage(connection, cycle_id, Stage.SNAPSHOT, state="done", inputs={}, created_at=now)
        cycles.update_cycle(connection, cycle_id, state=state)


def test_health_needs_no_key_and_begins_as_the_plan_says(client: TestClient):
    found = client.get("/api/health").json()
    assert list(found.items())[:2] == [("status", "healthy"), ("models", "operational")]
    assert (found["cycles"], found["version"], found["problems"]) == ("ready", everswarm.__version__, [])


def test_one_endpoint_that_works_is_enough_and_the_others_are_named():
    found = health_of(
        endpoints={"embedded": "operational", "ollama": "refuses connections"}, cycles="ready", database_answers=True
    )
    assert (found.models, found.status) == ("operational", "degraded")
    assert found.problems == ["endpoint ollama: refuses connections"]


def test_degraded_states_are_named():
    starting = health_of(
        endpoints={"embedded": "starting: fetching the model"}, cycles="starting", database_answers=True
    )
    assert (starting.models, starting.problems) == (
        "starting",
        ["endpoint embedded: starting: fetching the model", "cycles: starting"],
    )
    down = health_of(endpoints={"embedded": "gave up after 5 restarts"}, cycles="failed", database_answers=False)
    assert (down.models, down.status) == ("unavailable", "degraded")
    assert down.problems[1:] == [
        "cycles: failed; the server's log says why",
        "database: does not answer; the server's log says why",
    ]
    none = health_of(endpoints={}, cycles="ready", database_answers=True)
    assert (none.models, len(none.problems)) == ("unavailable", 1)


REFUSED = "the server at http://10.0.0.7:9000/mcp refuses us (HTTP 401); is the token in SEARCH_TOKEN right?"


def with_tools(client: TestClient, **states: str) -> None:
    client.app.state.swarm.servers.states = lambda: states  # type: ignore[attr-defined]


def test_tool_server_that_is_down_is_a_named_problem_and_models_stay_operational(client: TestClient):
    with_tools(client, files="operational", search=REFUSED, late="starting…")
    found = client.get("/api/health").json()
    assert (found["status"], found["models"]) == ("degraded", "operational")
    assert found["problems"] == ["tool server search: refuses us"]
    assert found["tool_servers"] == {"files": "operational", "search": "refuses us", "late": "starting…"}


def test_tool_server_that_starts_is_no_problem(client: TestClient):
    with_tools(client, files="operational", late="starting…")
    assert client.get("/api/health").json()["status"] == "healthy"


@pytest.mark.parametrize(
    ("scope", "told"),
    [(Scope.ADMIN, REFUSED), (Scope.USER, REFUSED), (Scope.DEVICE, "refuses us"), (None, "refuses us")],
)
def test_only_a_key_of_a_person_brings_the_addresses_of_tool_servers(
    client: TestClient, database: Database, scope: Scope | None, told: str
):
    with_tools(client, search=REFUSED)
    key = create_key(database, scope=scope, label="any key").key if scope else "esw_unknown"
    found = client.get("/api/health", headers={"Authorization": f"Bearer {key}"}).json()
    assert (found["tool_servers"], found["problems"]) == ({"search": told}, [f"tool server search: {told}"])


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("not started: the variable TOKEN is not set; set it and restart", "not started"),
        ("cannot be started: '/opt/x': No such file or directory; trying again after 2 s", "cannot be started"),
        ("'/opt/x' does not speak the protocol (McpError); trying again after 2 s", "not connected"),
        ("the server at http://10.0.0.7/mcp answers with HTTP 500; trying again after 2 s", "not connected"),
        ("operational", "operational"),
        ("starting…", "starting…"),
    ],
)
def test_short_state_of_a_tool_server_has_no_address_program_or_variable(state: str, told: str):
    assert tools_in_short({"x": state}) == {"x": told}


def test_closed_database_is_a_degraded_state_and_not_an_error(client: TestClient, database: Database, tmp_path):
    database.close()
    (tmp_path / "everswarm.sqlite").write_bytes(b"not a database" * 1000)
    assert any(problem.startswith("database:") for problem in client.get("/api/health").json()["problems"])


def test_overview_needs_a_key(client: TestClient):
    assert client.get("/api/overview").status_code == 401


def test_next_step_leads_through_the_loop(client: TestClient, database: Database):
    assert overview(client, database)["next_step"].startswith(
        f"Ask something, then rate or correct the answer: a cycle needs {NEEDED}"
    )
    correct(database, 12)
    found = overview(client, database)
    assert found["next_step"] == (
        "Correct 12 more answers, or rate good ones 4 or 5, with consent to training: a cycle needs 24 examples."
    )
    assert (found["interactions"], found["corrections"], found["usable"], found["needed"]) == (12, 12, 12, NEEDED)
    correct(database, 30)
    assert overview(client, database)["next_step"] == (
        "There are 30 examples to learn from: start a cycle with `everswarm cycle run`."
    )
    add_cycle(database, "cycle-1", state="running")
    assert overview(client, database)["next_step"] == "A cycle is running; its progress is below."
    add_cycle(database, "cycle-2", state="failed")
    assert "everswarm cycle retry cycle-2" in overview(client, database)["next_step"]


def test_too_few_people_are_told(client: TestClient, database: Database):
    correct(database, 30, people=2)
    found = overview(client, database)
    assert (found["people"], found["people_needed"]) == (2, 3)
    assert "at least 3 people, and those there are come from 2." in found["next_step"]


def test_released_adapter_waits_for_a_device(client: TestClient, database: Database):
    correct(database, 30)
    add_cycle(database, "cycle-1", state="released")
    base = Artifact(sha256="a" * 64, size_bytes=1, kind=ArtifactKind.BASE_GGUF, name="base.gguf")
    with database.transaction() as connection:
        publish_release(
            connection,
            role="ultralight",
            student="tiny",
            base=base,
            adapter=None,
            quantization="Q4_K_M",
            cycle_id="cycle-1",
            dataset="c" * 64,
            evaluation="d" * 64,
            reason="Released: better.",
        )
    found = overview(client, database)
    assert "everswarm device enroll" in found["next_step"]
    assert (found["releases"], found["version_in_use"], found["devices"]) == (1, "v1.0", 0)
    admin = Principal(key_id="admin", scope=Scope.ADMIN, label="admin")
    enrol_device(database, admin, DeviceEnrolment(device_id="dev-1", name="phone", client_version="0.1.0"))
    assert overview(client, database)["next_step"].startswith("Nothing needs you now")


def test_last_cycles_are_shown_newest_first_with_the_stage_that_is_next(client: TestClient, database: Database):
    for number in range(7):
        add_cycle(database, f"cycle-{number}", state="held")
    rows = overview(client, database)["cycles"]
    assert [row["id"] for row in rows] == [f"cycle-{number}" for number in (6, 5, 4, 3, 2)]
    assert (rows[0]["stage"], rows[0]["state"], rows[0]["student"]) == ("curate", "held", "tiny")
