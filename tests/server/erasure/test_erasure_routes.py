"""Who may erase what over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from tests.server.erasure.world import World

from everswarm.schemas.server import Scope
from everswarm.server.auth.service import create_key, principal_of
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.erasure.routes import router
from everswarm.server.feedback.tables import interactions
from everswarm.server.gateway.cache import AnswerCache
from everswarm.settings import Settings


class Gateway:
    """What the route wants of it."""

    def __init__(self, path: Path) -> None:
        self.answer_cache = AnswerCache(path, ttl_seconds=60, size_bytes=10**6)


class Caller:
    """One key over HTTP."""

    def __init__(self, http: TestClient, database: Database, scope: Scope) -> None:
        made = create_key(database, scope=scope, label=scope.value)
        self.key_id = made.id
        self.user = principal_of(database, made.key).user
        self._http, self._headers = http, {"Authorization": f"Bearer {made.key}"}

    def erases(self, **named: Any) -> Any:
        return self._http.post("/api/erasures", json=named, headers=self._headers)


@pytest.fixture
def http(database: Database, tmp_path: Path) -> Iterator[TestClient]:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(router)
    app.state.database, app.state.settings = database, Settings(home=tmp_path)
    app.state.gateway = Gateway(tmp_path / "cache.sqlite")
    with TestClient(app) as client:
        yield client


@pytest.fixture
def person(http: TestClient, database: Database) -> Caller:
    return Caller(http, database, Scope.USER)


@pytest.fixture
def phone(http: TestClient, database: Database) -> Caller:
    return Caller(http, database, Scope.DEVICE)


@pytest.fixture
def admin(http: TestClient, database: Database) -> Caller:
    return Caller(http, database, Scope.ADMIN)


def test_an_administrator_erases_anybody(admin: Caller, world: World) -> None:
    world.asks("anna", "anna-1")
    world.runs_cycle("c1", {"anna-1": "anna"})
    answered = admin.erases(user="anna", files=True)
    assert answered.status_code == 200
    assert answered.json()["erased"]["interactions"] == 1
    assert answered.json()["files_deleted"]


def test_a_person_erases_itself_and_is_not_told_of_others_devices(person: Caller, world: World) -> None:
    world.asks(person.user, "own")
    world.runs_cycle("c1", {"own": person.user})
    world.asks("anna", "anna-1")
    with world.database.read() as connection:
        [release] = connection.exec_driver_sql("SELECT id FROM releases").scalars()
    world.enrols("tablet", release_id=release)
    told = person.erases(user=person.user).json()
    assert told["erased"]["interactions"] == 1
    assert (told["seen"][0]["device_count"], told["seen"][0]["devices"]) == (1, [])
    assert world.count(interactions) == 1


def test_a_person_need_not_know_its_own_name(person: Caller, world: World) -> None:
    world.asks(person.user, "own")
    assert person.erases().json()["erased"]["interactions"] == 1


def test_nobody_but_an_administrator_erases_others(person: Caller, phone: Caller, world: World) -> None:
    world.asks("anna", "anna-1")
    for caller in (person, phone):
        for named in ({"user": "anna"}, {"device": "anna"}):
            refused = caller.erases(**named)
            assert refused.status_code == 403
            assert f"may erase only itself: user {caller.user}" in refused.json()["detail"]
    assert world.count(interactions) == 1


def test_a_foreign_interaction_looks_like_none(person: Caller, world: World) -> None:
    world.asks("anna", "anna-1")
    world.asks(person.user, "own")
    foreign, unknown = person.erases(interaction="anna-1"), person.erases(interaction="anna-2")
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json()["detail"] == unknown.json()["detail"].replace("anna-2", "anna-1")
    assert person.erases(interaction="own").status_code == 200
    assert world.count(interactions) == 1


def test_only_an_administrator_has_files_deleted(person: Caller, world: World) -> None:
    world.asks(person.user, "own")
    refused = person.erases(user=person.user, files=True)
    assert refused.status_code == 403
    assert "hold other people" in refused.json()["detail"]


def test_a_device_that_calls_itself_like_somebody_else_erases_its_own_only(phone: Caller, world: World) -> None:
    world.asks("victim", "not-theirs")
    world.asks("victim", "sent-by-them", sender=phone.user, source="device")
    world.enrols("victim", key_id=phone.key_id)
    assert phone.erases(device="victim").json()["erased"]["interactions"] == 1
    assert world.count(interactions, interactions.c.id == "not-theirs") == 1


@pytest.mark.parametrize("named", [{}, {"user": "a", "device": "b"}, {"user": ""}, {"user": "a\x00"}, {"who": "a"}])
def test_what_names_not_exactly_one_is_refused(admin: Caller, named: dict[str, str]) -> None:
    assert admin.erases(**named).status_code == 422


def test_who_is_unknown_is_not_found(admin: Caller) -> None:
    unknown = admin.erases(user="nobody")
    assert unknown.status_code == 404
    assert unknown.json()["detail"] == "Nothing is known of the user 'nobody'; there is nothing to erase."
