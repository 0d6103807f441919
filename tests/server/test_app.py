from __future__ import annotations

import base64
import errno
import hashlib
import re
import subprocess
import sys
import threading

import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient

from everswarm.errors import EverswarmError, NotFoundError, UnavailableError
from everswarm.schemas.interaction import FeedbackRequest
from everswarm.schemas.server import Problem, Scope
from everswarm.server import app as app_module
from everswarm.server.app import create_app
from everswarm.server.auth import create_key
from everswarm.server.edge.body_limit import BodyLimit
from everswarm.server.edge.browser_headers import BrowserHeaders, content_policy
from everswarm.settings import EngineSettings, Settings

router = APIRouter()


@router.post("/api/try/judge")
def judge(wanted: FeedbackRequest) -> str:
    return wanted.interaction_id


@router.post("/api/try/fail/{how}")
@router.post("/v1/try/fail/{how}")
def fail(how: str) -> None:
    raise {
        "missing": NotFoundError("There is no model 'x'. GET /v1/models lists them."),
        "later": UnavailableError("The engine is starting.", retry_after_seconds=7),
        "full": OSError(errno.ENOSPC, "/secret/place"),
        "ours": EverswarmError("said"),
        "bug": RuntimeError("/secret/place"),
    }[how]


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", engine=EngineSettings(enabled=False), max_body_bytes=4096)


@pytest.fixture
def app(settings, monkeypatch):
    monkeypatch.setattr(app_module, "LISTEN_FIRST_SECONDS", 3600)  # the workflow engine has tests of its own
    app = create_app(settings)
    app.include_router(router)
    return app


@pytest.fixture
def client(app):
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_keys_outlive_the_server(app, settings):
    with TestClient(app):
        key = create_key(app.state.database, scope=Scope.ADMIN, label="mine").key
    with TestClient(create_app(settings)) as client:
        assert client.get("/api/keys", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_error_is_a_problem_that_says_what_to_do(client):
    answer = client.post("/api/try/fail/missing")
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(answer.json())
    assert (problem.status, problem.title) == (404, "Not found")
    assert problem.detail == "There is no model 'x'. GET /v1/models lists them."
    assert problem.instance == "/api/try/fail/missing"


def test_error_under_v1_is_what_openai_clients_read(client):
    answer = client.post("/v1/try/fail/missing")
    assert answer.status_code == 404
    assert answer.json() == {
        "error": {
            "message": "There is no model 'x'. GET /v1/models lists them.",
            "type": "invalid_request_error",
            "code": "not_found",
            "param": None,
        }
    }


@pytest.mark.parametrize("start", ["/api", "/v1"])
def test_what_may_work_later_says_when(client, start):
    answer = client.post(f"{start}/try/fail/later")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize(("how", "status"), [("bug", 500), ("full", 507)])
@pytest.mark.parametrize("start", ["/api", "/v1"])
def test_surprise_shows_nothing_of_the_inside(client, start, how, status):
    answer = client.post(f"{start}/try/fail/{how}")
    assert answer.status_code == status
    assert "secret" not in answer.text
    assert answer.json()


def test_wrong_fields_are_named_and_their_values_are_not_repeated(client):
    answer = client.post("/api/try/judge", json={"rating": 9, "interaction_id": "i", "passwort": "hunter2"})
    assert answer.status_code == 422
    problem = Problem.model_validate(answer.json())
    assert problem.errors == [
        {"field": "rating", "problem": "Input should be less than or equal to 5"},
        {"field": "passwort", "problem": "Extra inputs are not permitted"},
    ]
    assert problem.detail.startswith("rating: Input should be less than or equal to 5; passwort: Extra inputs")
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"",
        b"[]",
        b'{"rating": NaN}',
        b'{"interaction_id": "\\ud800", "comment": "x"}',
        b'{"\\ud800": 1}',
        b"[" * 4000,
        b'{"rating": ' + b"9" * 4000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/api/try/judge"])
def test_malformed_body_is_never_a_500(client, path, body):
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    Problem.model_validate(answer.json())


@pytest.mark.parametrize("known_length", [True, False])
def test_body_over_the_limit_is_413(client, known_length):
    body = b'{"interaction_id": "i", "comment": "' + b"x" * 5000 + b'"}'
    content = body if known_length else iter([body[:3000], body[3000:]])
    answer = client.post("/api/try/judge", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert "4,096 bytes" in answer.json()["detail"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_body_of_unknown_length_within_the_limit_passes(client):
    body = iter([b'{"interaction_id": "i", ', b'"rating": 5}'])
    answer = client.post("/api/try/judge", content=body, headers={"Content-Type": "application/json"})
    assert answer.json() == "i"


def test_artifacts_may_be_larger_than_other_bodies(client, app):
    data = b"x" * 10_000
    key = create_key(app.state.database, scope=Scope.WORKER, label="w").key
    answer = client.put(
        f"/api/artifacts/{hashlib.sha256(data).hexdigest()}",
        content=data,
        headers={"Authorization": f"Bearer {key}", "X-Artifact-Kind": "record", "X-Artifact-Name": "x"},
    )
    assert answer.status_code == 201


def test_unknown_address_and_method_point_to_the_docs(client):
    for answer, status in ((client.get("/api/nothing"), 404), (client.put("/api/try/judge"), 405)):
        assert answer.status_code == status
        assert "/docs lists" in Problem.model_validate(answer.json()).detail


def test_docs_know_the_key_and_the_errors(client):
    described = client.get("/openapi.json").json()
    assert described["info"]["title"] == "everswarm"
    assert described["components"]["securitySchemes"]["API key"]["scheme"] == "bearer"
    operation = described["paths"]["/api/artifacts/{sha256}"]["put"]
    assert {"4XX", "5XX"} <= set(operation["responses"])
    assert operation["security"] == [{"API key": []}]
    used = {tag for path in described["paths"].values() for route in path.values() for tag in route.get("tags", [])}
    assert used <= {tag["name"] for tag in described["tags"]}
    assert "swagger" in client.get("/docs").text


def test_every_route_but_the_public_ones_needs_a_key(client):
    described = client.get("/openapi.json").json()
    open_routes = {
        path
        for path, methods in described["paths"].items()
        for route in methods.values()
        if not route.get("security") and "/try/" not in path
    }
    assert open_routes <= {"/api/health"}


def test_browser_headers_are_on_every_answer(client):
    for path in ("/api/nothing", "/openapi.json", "/docs"):
        headers = client.get(path).headers
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_docs_need_no_other_server(client):
    page = client.get("/docs")
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {client.get(source).status_code for source in sources} == {200}
    policy = page.headers["content-security-policy"]
    assert "http" not in policy
    assert "script-src 'self' 'sha256-" in policy


def test_policy_lets_only_the_scripts_of_the_page_run():
    policy = content_policy('<script src="/static/a.js"></script><script type="module">\nlet a = 1;\n</script>')
    digest = base64.b64encode(hashlib.sha256(b"\nlet a = 1;\n").digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy


def test_server_starts_without_what_is_slow_to_import():
    slow = "{'dbos', 'alembic', 'pyarrow', 'polars', 'torch', 'transformers', 'fsspec', 'huggingface_hub'}"
    program = f"import sys, everswarm.server.app; print(*{slow} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_stopped_server_leaves_no_thread_behind(app):
    with TestClient(app) as client:
        client.get("/openapi.json")
    left = {thread.name for thread in threading.enumerate() if not thread.daemon} - {"MainThread"}
    assert not {name for name in left if "cycles" in name}


# --- the outermost layers, without the framework


async def call(app, headers=(), body=()) -> list[dict]:
    """Send one request whose body comes in pieces; return what was sent back."""
    sent, pieces = [], list(body)

    async def receive():
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/api/x", "headers": list(headers)}, receive, send)
    return sent


@pytest.mark.parametrize("own", [[], [(b"x-frame-options", b"SAMEORIGIN"), (b"content-type", b"text/html")]])
async def test_browser_headers_are_added_once_and_never_replace(own):
    start = {"type": "http.response.start", "status": 200, "headers": own}

    async def app(scope, receive, send):
        await send(dict(start))
        await send({"type": "http.response.body", "body": b"x"})

    for _ in range(2):  # the second finds nothing left over from the first
        first, second = await call(BrowserHeaders(app, policy="default-src 'self'"))
        names = [name for name, _ in first["headers"]]
        assert len(names) == len(set(names))
        assert dict(first["headers"]) == {
            b"x-content-type-options": b"nosniff",
            b"referrer-policy": b"no-referrer",
            b"x-frame-options": b"DENY",
            b"cross-origin-opener-policy": b"same-origin",
            b"content-security-policy": b"default-src 'self'",
            **dict(own),
        }
        assert second == {"type": "http.response.body", "body": b"x"}


async def test_browser_headers_are_added_where_there_are_none():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})

    (start,) = await call(BrowserHeaders(app, policy="default-src 'self'"))
    assert len(start["headers"]) == 5


async def test_promised_length_does_not_excuse_a_body_in_chunks():
    async def app(scope, receive, send):
        raise AssertionError("reached")

    headers = [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")]
    start, _ = await call(BodyLimit(app, max_body_bytes=10), headers, [b"x" * 6, b"x" * 6])
    assert start["status"] == 413


async def test_chunks_within_the_limit_arrive_unchanged():
    pieces = []

    async def app(scope, receive, send):
        pieces.extend([await receive(), await receive()])

    await call(BodyLimit(app, max_body_bytes=12), [(b"transfer-encoding", b"chunked")], [b"x" * 6, b"y" * 6])
    assert [piece["body"] for piece in pieces] == [b"x" * 6, b"y" * 6]
