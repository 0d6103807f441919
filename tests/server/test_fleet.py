from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from everswarm.errors import ForbiddenError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.release import Release
from everswarm.schemas.server import Scope
from everswarm.schemas.sync import Device, DeviceEnrolment
from everswarm.server.auth import Principal, create_key, revoke_key
from everswarm.server.database import Database
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.fleet import current_base, enrol_device, latest_release, publish_release, set_base
from everswarm.server.fleet.routes import router
from everswarm.server.fleet.service import model_slug

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BASE = Artifact(sha256="a" * 64, size_bytes=105_454_432, kind=ArtifactKind.BASE_GGUF, name="smol.gguf")
ADAPTER = Artifact(sha256="b" * 64, size_bytes=1_900_000, kind=ArtifactKind.ADAPTER_GGUF, name="adapter.gguf")


def publish(database: Database, cycle_id: str, **values: Any) -> Release:
    fields: dict[str, Any] = {
        "role": "ultralight",
        "student": SMOL,
        "base": BASE,
        "adapter": ADAPTER,
        "quantization": "Q4_K_M",
        "cycle_id": cycle_id,
        "dataset": "c" * 64,
        "evaluation": "d" * 64,
        "reason": "Released: better.",
        **values,
    }
    with database.transaction() as connection:
        return publish_release(connection, **fields)


def device_key(database: Database, scope: Scope = Scope.DEVICE) -> tuple[Principal, dict[str, str]]:
    made = create_key(database, scope=scope, label="a phone")
    return Principal(key_id=made.id, scope=scope, label=made.label), {"Authorization": f"Bearer {made.key}"}


def enrol(database: Database, principal: Principal, device_id: str = "dev-1", name: str = "phone") -> Device:
    return enrol_device(database, principal, DeviceEnrolment(device_id=device_id, name=name, client_version="0.1.0"))


@pytest.fixture
def client(database: Database) -> TestClient:
    app = FastAPI()
    app.state.database = database
    install_error_handlers(app)
    app.include_router(router)
    return TestClient(app, base_url="http://127.0.0.1:8123", raise_server_exceptions=False)


def test_enrolment_again_updates_the_device(client: TestClient, database: Database):
    _, headers = device_key(database)
    sent = {"device_id": "dev-1", "name": "phone", "client_version": "0.1.0"}
    first = client.post("/api/devices", json=sent, headers=headers).json()
    again = client.post("/api/devices", json={**sent, "name": "new name"}, headers=headers).json()
    assert again["enrolled_at"] == first["enrolled_at"] and again["name"] == "new name"
    _, admin = device_key(database, Scope.ADMIN)
    assert [device["name"] for device in client.get("/api/devices", headers=admin).json()] == ["new name"]
    assert client.get("/api/devices", headers=headers).status_code == 403


def test_key_stands_for_the_first_device_that_enrolled_with_it(database: Database):
    principal, _ = device_key(database)
    enrol(database, principal)
    with pytest.raises(ForbiddenError, match=r"belongs to the device 'dev-1' .* everswarm keys create"):
        enrol(database, principal, "dev-2")


def test_device_changes_its_key_only_after_the_old_one_was_revoked(database: Database):
    (old, _), (new, _) = device_key(database), device_key(database)
    enrol(database, old)
    with pytest.raises(ForbiddenError, match="enrolled with another key"):
        enrol(database, new)
    revoke_key(database, old.key_id)
    assert enrol(database, new).device_id == "dev-1"


def test_admin_enrols_any_device_and_leaves_the_key_to_it(database: Database):
    (admin, _), (principal, _) = device_key(database, Scope.ADMIN), device_key(database)
    enrol(database, admin)
    enrol(database, admin, "dev-2")
    enrol(database, principal)
    enrol(database, admin, name="renamed")
    with pytest.raises(ForbiddenError):
        enrol(database, principal, "dev-2")


def test_releases_of_a_role_are_numbered_and_a_cycle_has_one(database: Database):
    first = publish(database, "cycle-1")
    assert publish(database, "cycle-1", reason="another") == first
    second = publish(database, "cycle-2")
    other = publish(database, "cycle-3", role="fast", adapter=None)
    assert [first.version, second.version, other.version] == ["v1.0", "v1.1", "v1.0"]
    with database.read() as connection:
        assert latest_release(connection, "ultralight") == second
        assert latest_release(connection, "fast") == other
        assert latest_release(connection, "primary") is None


def test_releases_are_listed_newest_first(client: TestClient, database: Database):
    _, headers = device_key(database)
    published = [publish(database, f"cycle-{number}") for number in range(3)]
    found = client.get("/api/releases?limit=2", headers=headers).json()
    assert [Release.model_validate(release) for release in found] == published[:0:-1]
    assert client.get("/api/releases").status_code == 401


def test_before_the_first_release_devices_get_the_base_alone(client: TestClient, database: Database):
    _, headers = device_key(database)
    assert client.get("/api/models/mobile/latest?device_id=dev-1", headers=headers).json() == {}
    for quantization in ("F16", "Q4_K_M"):  # each start of the server says it again
        with database.transaction() as connection:
            set_base(connection, role="ultralight", student=SMOL, base=BASE, quantization=quantization)
    (found,) = client.get("/api/models/mobile/latest?device_id=dev-1", headers=headers).json().items()
    assert found == (
        "smollm2_135m",
        {
            "version": "v0",
            "url": f"http://127.0.0.1:8123/api/artifacts/{'a' * 64}",
            "size_mb": 105.5,
            "quantization": "q4_k_m",
            "sha256": "a" * 64,
            "role": "ultralight",
            "model": SMOL,
            "release_id": None,
            "base": BASE.model_dump(mode="json"),
            "adapter": None,
            "adapter_url": None,
            "signed": False,
        },
    )


def test_device_is_told_of_the_latest_release_and_that_is_noted(client: TestClient, database: Database):
    principal, headers = device_key(database)
    enrolled = enrol(database, principal)
    with database.transaction() as connection:
        set_base(connection, role="ultralight", student=SMOL, base=BASE, quantization="Q8_0")
    publish(database, "cycle-1")
    release = publish(database, "cycle-2")
    told = client.get("/api/models/mobile/latest?device_id=dev-1", headers=headers).json()["smollm2_135m"]
    assert (told["version"], told["release_id"], told["quantization"]) == ("v1.1", release.id, "q4_k_m")
    assert told["adapter_url"] == f"http://127.0.0.1:8123/api/artifacts/{'b' * 64}"
    again = enrol(database, principal)
    assert again.release_id == release.id and again.last_seen_at > enrolled.last_seen_at
    with database.read() as connection:
        base = current_base(connection, "ultralight")
    assert base is not None and base.quantization == "Q4_K_M"


def test_device_key_cannot_ask_as_another_device(client: TestClient, database: Database):
    principal, headers = device_key(database)
    other, _ = device_key(database)
    enrol(database, principal)
    enrol(database, other, "dev-2")
    assert client.get("/api/models/mobile/latest?device_id=dev-2", headers=headers).status_code == 403
    assert client.get("/api/models/mobile/latest", headers=headers).status_code == 422
    assert client.get("/api/models/mobile/latest?device_id=", headers=headers).status_code == 422
    assert client.get("/api/models/mobile/latest?device_id=dev-1").status_code == 401


def test_roles_that_share_a_model_are_all_listed(client: TestClient, database: Database):
    _, headers = device_key(database)
    with database.transaction() as connection:
        set_base(connection, role="ultralight", student=SMOL, base=BASE, quantization="Q4_K_M")
        set_base(connection, role="fast", student=SMOL, base=BASE, quantization="Q4_K_M")
    found = client.get("/api/models/mobile/latest?device_id=dev-1", headers=headers).json()
    assert {key: model["role"] for key, model in found.items()} == {
        "smollm2_135m": "fast",
        "smollm2_135m_ultralight": "ultralight",
    }


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("microsoft/Phi-3-mini-4k-instruct", "phi3_mini"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama32_1b"),
        (SMOL, "smollm2_135m"),
        ("someone/Other-2.5B_Chat", "other_2_5b_chat"),
    ],
)
def test_model_has_the_short_name_of_the_plan(model: str, slug: str):
    assert model_slug(model) == slug
