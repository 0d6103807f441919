from __future__ import annotations

import errno
import hashlib
import os
import time
import uuid
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everswarm.errors import (
    BadRequestError,
    ConfigurationError,
    DigestMismatchError,
    NoSpaceError,
    NotFoundError,
    TooLargeError,
)
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.server import Scope
from everswarm.server.auth import create_key
from everswarm.server.edge.problems import install_error_handlers
from everswarm.server.registry import ArtifactStore, Upload, routes
from everswarm.server.registry.routes import router

DATA = bytes(range(256)) * 20
SHA256 = hashlib.sha256(DATA).hexdigest()
KIND = ArtifactKind.ADAPTER_GGUF


@pytest.fixture(params=["folder", "url"])
def store(request, tmp_path, database):
    root = str(tmp_path / "artifacts") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/artifacts"
    return ArtifactStore(root, database)


@pytest.fixture
def folder(tmp_path, database):
    return ArtifactStore(str(tmp_path / "artifacts"), database)


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_stored_bytes_come_back(store):
    stored = store.put_bytes(DATA, kind=KIND, name="a.gguf")
    assert (stored.sha256, stored.size_bytes, stored.kind, stored.name) == (SHA256, len(DATA), KIND, "a.gguf")
    with store.open(SHA256) as file:
        assert file.read() == DATA
    assert store.get(SHA256) == stored


def test_storing_again_changes_nothing(store):
    first = store.put_bytes(DATA, kind=KIND, name="a.gguf")
    never_read = (pytest.fail("read again") for _ in range(1))
    assert store.put_stream(never_read, sha256=SHA256, kind=KIND, name="b.gguf") == first


def test_wrong_digest_leaves_nothing(store):
    with pytest.raises(DigestMismatchError, match=f"expected sha256 {'0' * 64}, found {SHA256}"):
        store.put_stream([DATA], sha256="0" * 64, kind=KIND, name="a.gguf")
    assert store.find("0" * 64) is None
    with pytest.raises(NotFoundError):
        store.open("0" * 64)


def test_over_the_limit_leaves_nothing(store):
    with pytest.raises(TooLargeError, match="larger than 1,000 bytes"):
        store.put_stream([DATA[:800], DATA[800:]], sha256=SHA256, kind=KIND, name="a.gguf", size_limit=1000)
    with pytest.raises(NotFoundError):
        store.get(SHA256)


def test_source_that_fails_leaves_nothing(folder, tmp_path):
    def broken():
        yield DATA[:100]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        folder.put_stream(broken(), sha256=SHA256, kind=KIND, name="a.gguf")
    assert files_in(tmp_path / "artifacts") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing(folder, tmp_path, monkeypatch, code):
    def full(_descriptor: int) -> None:
        raise OSError(code, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="nothing was kept"):
        folder.put_bytes(DATA, kind=KIND, name="a.gguf")
    assert files_in(tmp_path / "artifacts") == []
    assert folder.find(SHA256) is None


def test_lost_file_is_said_and_may_be_stored_again(folder):
    folder.put_bytes(DATA, kind=KIND, name="a.gguf")
    folder.local_path(SHA256).unlink()
    assert folder.local_path(SHA256) is None
    with pytest.raises(NotFoundError, match=r"a\.gguf.*missing from the store"):
        folder.open(SHA256)
    folder.put_bytes(DATA, kind=KIND, name="a.gguf")
    assert folder.local_path(SHA256).read_bytes() == DATA


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63, SHA256 + "\n"])
def test_only_a_sha256_names_a_file(folder, name):
    with pytest.raises(BadRequestError, match="is not a sha256"):
        folder.local_path(name)


def test_start_clears_what_was_abandoned_and_spares_what_is_under_way(folder, tmp_path, database):
    incoming = tmp_path / "artifacts" / "incoming"
    for name in ("old", "new"):
        (incoming / name).write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(incoming / "old", (two_days_ago, two_days_ago))
    ArtifactStore(str(tmp_path / "artifacts"), database)
    assert [path.name for path in incoming.iterdir()] == ["new"]


def test_root_that_cannot_be_used_is_a_configuration_error(tmp_path, database):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="EVERSWARM_ARTIFACTS_URL"):
        ArtifactStore(str(tmp_path / "file" / "artifacts"), database)
    with pytest.raises(ConfigurationError, match="nosuch"):
        ArtifactStore("nosuch://place", database)


# --- over HTTP


@pytest.fixture
def client(store, database):
    app = FastAPI()
    app.state.database, app.state.artifacts = database, store
    install_error_handlers(app)
    app.include_router(router)
    key = create_key(database, scope=Scope.WORKER, label="w").key
    with TestClient(app, headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


URL = f"/api/artifacts/{SHA256}"
PROMISES = {"X-Artifact-Kind": "adapter-gguf", "X-Artifact-Name": "a.gguf"}


def test_upload_is_201_then_200(client):
    first, again = (client.put(URL, content=DATA, headers=PROMISES) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == client.get(f"{URL}/meta").json()
    assert first.json() == {"sha256": SHA256, "size_bytes": len(DATA), "kind": "adapter-gguf", "name": "a.gguf"}


def test_download_names_its_digest_and_may_be_kept(client):
    client.put(URL, content=DATA, headers=PROMISES)
    whole, head = client.get(URL), client.head(URL)
    assert whole.content == DATA
    assert head.content == b""
    for answer in (whole, head):
        assert answer.status_code == 200
        assert answer.headers["content-length"] == str(len(DATA))
        assert answer.headers["etag"] == f'"sha256-{SHA256}"'
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("tag", [f'"sha256-{SHA256}"', f'"x", W/"sha256-{SHA256}"', "*"])
def test_what_the_caller_has_is_not_sent_again(client, tag):
    client.put(URL, content=DATA, headers=PROMISES)
    answer = client.get(URL, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == f'"sha256-{SHA256}"'
    assert client.get(URL, headers={"If-None-Match": '"other"'}).status_code == 200


def test_broken_download_resumes(client):
    client.put(URL, content=DATA, headers=PROMISES)
    answer = client.get(URL, headers={"Range": "bytes=1000-", "If-Range": f'"sha256-{SHA256}"'})
    assert (answer.status_code, answer.content) == (206, DATA[1000:])
    assert answer.headers["content-range"] == f"bytes 1000-{len(DATA) - 1}/{len(DATA)}"
    assert client.get(URL, headers={"Range": "bytes=10-19"}).content == DATA[10:20]
    assert client.get(URL, headers={"Range": f"bytes={len(DATA)}-"}).status_code == 416
    stale = client.get(URL, headers={"Range": "bytes=1000-", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, DATA)


@given(start=st.integers(0, len(DATA) - 1), length=st.integers(1, len(DATA) + 10))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_range_is_that_part_of_the_file(client, start, length):
    client.put(URL, content=DATA, headers=PROMISES)
    answer = client.get(URL, headers={"Range": f"bytes={start}-{start + length - 1}"})
    assert (answer.status_code, answer.content) == (206, DATA[start : start + length])


def test_wrong_upload_is_refused_and_not_kept(client):
    answer = client.put(URL, content=DATA[1:], headers=PROMISES)
    assert answer.status_code == 422
    assert answer.json()["title"] == "Wrong digest"
    assert client.head(URL).status_code == 404


def test_head_of_a_lost_file_is_404(client, monkeypatch):
    client.put(URL, content=DATA, headers=PROMISES)
    storage = client.app.state.artifacts._storage
    monkeypatch.setattr(storage, "exists", lambda _sha256: False)
    monkeypatch.setattr(storage, "local_path", lambda _sha256: None)
    assert client.head(URL).status_code == 404


def test_upload_over_the_limit_is_413_promised_or_not(client, monkeypatch):
    monkeypatch.setattr(routes, "MAX_ARTIFACT_BYTES", 100)
    assert client.put(URL, content=DATA, headers=PROMISES).status_code == 413
    assert client.put(URL, content=iter([DATA]), headers=PROMISES).status_code == 413
    assert client.head(URL).status_code == 404


def test_upload_to_a_full_disk_is_507(client, monkeypatch):
    def full(*_arguments: object) -> None:
        raise NoSpaceError("the disk is full")

    monkeypatch.setattr(Upload, "write", full)
    answer = client.put(URL, content=DATA * 1000, headers=PROMISES)
    assert (answer.status_code, answer.json()["title"]) == (507, "No space left")
    assert client.head(URL).status_code == 404


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"X-Artifact-Name": "a"}, "header X-Artifact-Kind"),
        ({"X-Artifact-Kind": "poem", "X-Artifact-Name": "a"}, "header X-Artifact-Kind"),
        ({"X-Artifact-Kind": "record"}, "header X-Artifact-Name"),
    ],
)
def test_upload_says_what_it_is(client, headers, named):
    answer = client.put(URL, content=DATA, headers=headers)
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == [named]


def test_digest_in_the_address_is_checked(client):
    assert client.get("/api/artifacts/nonsense").status_code == 422
    assert client.get(f"/api/artifacts/{'0' * 64}").status_code == 404


def test_only_workers_and_admins_upload(client, database):
    key = create_key(database, scope=Scope.DEVICE, label="phone").key
    phone = {"Authorization": f"Bearer {key}"}
    assert client.put(URL, content=DATA, headers=PROMISES | phone).status_code == 403
    client.put(URL, content=DATA, headers=PROMISES)
    assert client.get(URL, headers=phone).content == DATA
    assert client.get(URL, headers={"Authorization": ""}).status_code == 401


def test_a_kind_that_is_needed_no_more_is_deleted_and_the_rest_stays(store):
    kept = store.put_bytes(b"adapter", kind=KIND, name="a.gguf")
    gone = store.put_bytes(b"checkpoint", kind=ArtifactKind.CHECKPOINT, name="c.tar")
    assert store.delete_kind(ArtifactKind.CHECKPOINT) == 1
    assert store.find(gone.sha256) is None
    assert store.find(kept.sha256) == kept
    assert store.put_bytes(b"checkpoint", kind=ArtifactKind.CHECKPOINT, name="c.tar") == gone
