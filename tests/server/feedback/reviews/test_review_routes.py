"""The review queue over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.feedback.reviews.reviewing import (
    judged,
    open_review,
)

from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.feedback.reviews.routes import router
from everswarm.server.feedback.reviews.service import (
    find_review,
)
from everswarm.settings import Settings


@pytest.fixture
def client(database: Database) -> TestClient:
    app = FastAPI()
    app.state.database = database
    app.state.settings = Settings()
    install_error_handlers(app)
    app.include_router(router)
    return TestClient(app, raise_server_exceptions=False)


def key(database: Database, scope: Scope) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(database, scope=scope, label=scope.value).key}"}


def test_routes_show_sample_and_decide(client: TestClient, database: Database):
    ben, cleo = key(database, Scope.ADMIN), key(database, Scope.ADMIN)
    id_ = judged(database, rating=3)
    assert client.post("/api/reviews/sample?limit=5", headers=ben).json() == {"added": 1}
    found = client.get("/api/reviews?reason=doubt&limit=1", headers=ben).json()
    (review,) = found["reviews"]
    assert (found["open"], review["interaction_id"], review["response"]) == (1, id_, "In the cave.")
    place = f"/api/reviews/{review['id']}"
    assert client.get(place, headers=ben).json() == review
    for headers, state in ((ben, "open"), (cleo, "accepted")):
        answer = client.post(f"{place}/decisions", json={"verdict": "accept"}, headers=headers)
        assert (answer.status_code, answer.json()["state"]) == (200, state)
    assert client.get("/api/reviews?state=accepted", headers=ben).json()["agreement"]["agreeing_share"] == 1


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE, Scope.WORKER])
def test_only_admins_see_and_decide(client: TestClient, database: Database, scope: Scope):
    id_ = open_review(database)
    headers = key(database, scope)
    answers = [
        client.get("/api/reviews", headers=headers),
        client.get(f"/api/reviews/{id_}", headers=headers),
        client.post("/api/reviews/sample", headers=headers),
        client.post(f"/api/reviews/{id_}/decisions", json={"verdict": "accept"}, headers=headers),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert not any("treasure" in answer.text or "cave" in answer.text for answer in answers)
    assert client.get("/api/reviews").status_code == 401
    assert find_review(database, id_).decisions == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=201", "limit=many", "state=closed", "reason=mood", "reason=", "state=%00"]
)
def test_wrong_query_is_a_422(client: TestClient, database: Database, query: str):
    assert client.get(f"/api/reviews?{query}", headers=key(database, Scope.ADMIN)).status_code == 422


@pytest.mark.parametrize("limit", ["0", "1001", "x"])
def test_wrong_size_of_a_sample_is_a_422(client: TestClient, database: Database, limit: str):
    assert client.post(f"/api/reviews/sample?limit={limit}", headers=key(database, Scope.ADMIN)).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {"verdict": "maybe", "comment": "a secret word"},
        {"verdict": "accept", "comment": ""},
        {"verdict": "accept", "comment": "a secret word" * 10_000},
        {"verdict": "accept", "coment": "a secret word"},
        {"comment": "a secret word"},
        ["a secret word"],
    ],
)
def test_decision_that_cannot_be_used_is_a_422_that_repeats_none_of_it(
    client: TestClient, database: Database, body: Any
):
    id_ = open_review(database)
    answer = client.post(f"/api/reviews/{id_}/decisions", json=body, headers=key(database, Scope.ADMIN))
    assert answer.status_code == 422
    assert not any(text in answer.text for text in ("secret", "treasure", "cave", "within an hour"))
    assert find_review(database, id_).decisions == []


def test_unknown_review_is_a_404_that_names_the_list_and_none_of_the_comment(client: TestClient, database: Database):
    admin = key(database, Scope.ADMIN)
    body = {"verdict": "accept", "comment": "a secret word"}
    answers = [
        client.get("/api/reviews/nothing", headers=admin),
        client.post("/api/reviews/nothing/decisions", json=body, headers=admin),
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert all("GET /api/reviews" in answer.json()["detail"] for answer in answers)
    assert "secret" not in answers[1].text
    assert client.get("/api/reviews/%00", headers=admin).status_code == 422


def test_comment_with_a_nul_character_is_stored_without_it(client: TestClient, database: Database):
    id_ = open_review(database)
    body = {"verdict": "accept", "comment": "fine\x00"}
    answer = client.post(f"/api/reviews/{id_}/decisions", json=body, headers=key(database, Scope.ADMIN))
    assert answer.json()["decisions"][0]["comment"] == "fine"
