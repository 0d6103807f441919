from __future__ import annotations

import re
import threading

import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from everswarm.errors import BadRequestError, ConflictError, EverswarmError, NotFoundError, UnauthorizedError
from everswarm.schemas.base import Identifier
from everswarm.schemas.server import Scope
from everswarm.server import auth
from everswarm.server.auth import recent_keys as recent_keys_module
from everswarm.server.auth.recent_keys import RecentKeys, recent_keys
from everswarm.server.auth.routes import router
from everswarm.server.auth.service import principal_of
from everswarm.server.auth.tables import keys
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers


@pytest.fixture
def client(database):
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.include_router(router)

    @app.get("/for-workers", dependencies=[Depends(auth.require(Scope.WORKER))])
    def for_workers() -> str:
        return "in"

    @app.get("/who")
    def who(principal: auth.PrincipalDep) -> str:
        return principal.user

    return TestClient(app)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_key_names_its_scope_and_has_256_random_bits(database):
    made = [auth.create_key(database, scope=Scope.DEVICE, label="phone").key for _ in range(3)]
    assert all(re.fullmatch(r"esw_device_[A-Za-z0-9_-]{43}", key) for key in made)
    assert len(set(made)) == 3


def test_key_itself_is_stored_nowhere(database):
    made = auth.create_key(database, scope=Scope.USER, label="web")
    with database.read() as connection:
        stored = str(connection.execute(sa.select(keys)).one())
    assert made.key not in stored
    assert made.key.removeprefix("esw_user_")[8:] not in stored


def test_principal_of_a_key(database):
    made = auth.create_key(database, scope=Scope.USER, label=" web ")
    principal = principal_of(database, made.key)
    assert (principal.key_id, principal.scope, principal.label) == (made.id, Scope.USER, "web")


def test_users_are_identifiers_and_differ_by_key(database):
    made = [auth.create_key(database, scope=Scope.USER, label="web") for _ in range(20)]
    users = {principal_of(database, key.key).user for key in made}
    assert len(users) == 20
    for user in users:
        TypeAdapter(Identifier).validate_python(user)


def test_key_lookup_uses_the_index(database):
    statement = sa.select(keys.c.id).where(keys.c.sha256 == "x")
    with database.read() as connection:
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("x",)).all())
    assert "USING COVERING INDEX" in plan or "USING INDEX" in plan


def test_first_admin_key_is_made_once_even_after_it_was_revoked(database):
    first = auth.ensure_first_admin_key(database)
    assert first is not None
    assert first.scope is Scope.ADMIN
    assert auth.ensure_first_admin_key(database) is None
    auth.create_key(database, scope=Scope.ADMIN, label="second")
    auth.revoke_key(database, first.id)
    assert auth.ensure_first_admin_key(database) is None


def test_last_admin_key_cannot_be_revoked(database):
    first = auth.ensure_first_admin_key(database)
    with pytest.raises(ConflictError, match="Create another admin key first"):
        auth.revoke_key(database, first.id)


def test_revoking_is_final_and_keeps_its_date(database):
    made = auth.create_key(database, scope=Scope.USER, label="web")
    auth.revoke_key(database, made.id)
    (before,) = auth.list_keys(database)
    auth.revoke_key(database, made.id)
    assert auth.list_keys(database) == [before]
    with pytest.raises(UnauthorizedError, match="'web' was revoked on"):
        principal_of(database, made.key)
    with pytest.raises(NotFoundError, match="everswarm keys list"):
        auth.revoke_key(database, "nothing")


def test_keys_of_one_label_are_revoked_together(database):
    made = [auth.create_key(database, scope=Scope.WORKER, label="local worker") for _ in range(2)]
    other = auth.create_key(database, scope=Scope.WORKER, label="laptop")
    assert auth.revoke_keys_labelled(database, "local worker") == 2
    assert auth.revoke_keys_labelled(database, "local worker") == 0
    for key in made:
        with pytest.raises(UnauthorizedError):
            principal_of(database, key.key)
    assert principal_of(database, other.key).label == "laptop"


@pytest.mark.parametrize("label", ["", "   ", "x" * 101])
def test_label_has_a_length(database, label):
    with pytest.raises(BadRequestError, match="1 to 100 characters"):
        auth.create_key(database, scope=Scope.USER, label=label)


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Basic dTpw"}, bearer("esw_admin_guess"), {"Authorization": b"Bearer \xff\xfe"}]
)
def test_without_a_known_key_the_answer_is_401(client, headers):
    answer = client.get("/who", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert answer.json()["title"] == "Key needed"
    assert "guess" not in answer.text


def test_scope_decides_and_admin_always_passes(client, database):
    answers = {}
    for scope in Scope:
        made = auth.create_key(database, scope=scope, label=f"my {scope.value}")
        answers[scope] = client.get("/for-workers", headers=bearer(made.key))
        assert client.get("/who", headers=bearer(made.key)).status_code == 200
    assert {scope for scope, answer in answers.items() if answer.status_code == 200} == {Scope.WORKER, Scope.ADMIN}
    assert answers[Scope.USER].status_code == 403
    assert answers[Scope.USER].json()["detail"] == (
        "This needs a key with the scope worker or admin; the key 'my user' has user."
    )


def test_admin_makes_lists_and_revokes_keys_over_http(client, database):
    admin = bearer(auth.ensure_first_admin_key(database).key)
    made = client.post("/api/keys", json={"scope": "user", "label": "Ada"}, headers=admin)
    assert made.status_code == 201
    listed = client.get("/api/keys", headers=admin)
    assert [key["label"] for key in listed.json()] == ["first admin key", "Ada"]
    assert made.json()["key"] not in listed.text
    assert made.json()["key"].startswith(listed.json()[1]["prefix"])
    assert client.get("/api/keys", headers=bearer(made.json()["key"])).status_code == 403
    assert client.delete(f"/api/keys/{made.json()['id']}", headers=admin).status_code == 204
    assert client.get("/who", headers=bearer(made.json()["key"])).status_code == 401
    assert client.delete("/api/keys/nothing", headers=admin).status_code == 404
    assert client.post("/api/keys", json={"scope": "king", "label": "x"}, headers=admin).status_code == 422


# --- keys that were used a moment ago


@pytest.fixture
def transactions(database):
    """The thread of each transaction, also of those that only read."""
    begun = []
    sa.event.listen(database.engine, "begin", lambda _: begun.append(threading.current_thread()))
    return begun


def raw(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", f"Bearer {key}".encode())]


async def test_key_is_looked_up_once_and_never_on_the_loop(database, transactions):
    made = auth.create_key(database, scope=Scope.USER, label="web")
    transactions.clear()
    found = [await auth.authorise(raw(made.key), database, Scope.USER) for _ in range(5)]
    assert {principal.key_id for principal in found} == {made.id}
    assert len(transactions) == 1
    assert transactions[0] is not threading.current_thread()


async def test_key_that_another_process_revoked_works_for_seconds_only(database, monkeypatch):
    made = auth.create_key(database, scope=Scope.USER, label="web")
    await auth.principal_of_cached(database, made.key)
    with database.transaction() as connection:
        connection.execute(keys.update().values(revoked_at=made_at(connection)))
    assert (await auth.principal_of_cached(database, made.key)).key_id == made.id
    monkeypatch.setattr(recent_keys_module.time, "monotonic", later(5.0))
    with pytest.raises(UnauthorizedError, match="was revoked on"):
        await auth.principal_of_cached(database, made.key)


def made_at(connection: sa.Connection) -> object:
    return connection.execute(sa.select(keys.c.created_at)).scalar_one()


def later(seconds: float):
    now = recent_keys_module.time.monotonic()
    return lambda: now + seconds + 1


@pytest.mark.parametrize("by_label", [True, False])
async def test_key_that_this_process_revoked_ends_at_once(database, by_label):
    made = auth.create_key(database, scope=Scope.USER, label="web")
    await auth.principal_of_cached(database, made.key)
    other = Database(database.url)  # as `serve` opens one of its own
    if by_label:
        auth.revoke_keys_labelled(other, "web")
    else:
        auth.revoke_key(other, made.id)
    other.close()
    with pytest.raises(UnauthorizedError):
        await auth.principal_of_cached(database, made.key)


def test_look_up_that_a_revocation_overtook_is_not_kept():
    recent, principal = RecentKeys(), auth.Principal("id", Scope.USER, "web")
    before = recent.revocations
    recent.forget()
    recent.keep("key", principal, revocations=before)
    assert recent.find("key") is None
    recent.keep("key", principal, revocations=recent.revocations)
    assert recent.find("key")[0] is principal


def test_recent_keys_are_bounded(monkeypatch):
    monkeypatch.setattr(recent_keys_module, "MAX_KEYS", 3)
    recent, principal = RecentKeys(), auth.Principal("id", Scope.USER, "web")
    for number in (0, 1, 2, 2, 3, 4):
        recent.keep(str(number), principal, revocations=0)
    assert [number for number in range(5) if recent.find(str(number))] == [2, 3, 4]


async def test_unknown_key_is_not_remembered(database, transactions):
    for _ in range(2):
        with pytest.raises(UnauthorizedError):
            await auth.principal_of_cached(database, "esw_user_guess")
    assert len(transactions) == 2
    assert recent_keys(database).find("esw_user_guess") is None


@pytest.mark.parametrize(
    "template", [None, "Bearer", "Bearer ", "Basic {}", "bearer  {} ", "Bearer {}x", "Bearer \xff"]
)
@pytest.mark.parametrize("scope", Scope)
async def test_raw_headers_are_judged_like_those_of_a_route(client, database, template, scope):
    key = auth.create_key(database, scope=scope, label="mine").key
    headers = {} if template is None else {"Authorization": template.format(key).encode("latin-1")}
    answer = client.get("/for-workers", headers=headers)
    try:
        principal = await auth.authorise(
            [(name.lower().encode(), value) for name, value in headers.items()], database, Scope.WORKER
        )
    except EverswarmError as error:
        assert (answer.status_code, answer.json()["detail"]) == (error.status, str(error))
    else:
        assert answer.status_code == 200
        assert principal.scope is scope
