"""Where stages leave their files: a folder, or the artifact store of a real server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.local_server import LocalServer

from everswarm.errors import NotFoundError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.job import Progress
from everswarm.training.workspace import HttpWorkspace, LocalWorkspace, Workspace, describe, keep

MakeHttp = Callable[[str], HttpWorkspace]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    made = LocalServer(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.close()


@pytest.fixture
def lines() -> list[dict[str, Any]]:
    """What the workspace told its worker."""
    return []


@pytest.fixture
def make_http(server: LocalServer, tmp_path: Path, lines: list[dict[str, Any]]) -> Iterator[MakeHttp]:
    """Return a maker of workspaces by the name of their machine."""
    with server.client() as client:

        def make(machine: str) -> HttpWorkspace:
            home = tmp_path / machine
            return HttpWorkspace(client, folder=home / "scratch", cache=home / "cache", emit=lines.append)

        yield make


def write(workspace: Workspace, content: bytes, name: str = "dataset.parquet") -> Path:
    path = workspace.folder / name
    path.write_bytes(content)
    return path


def test_file_is_known_by_its_digest_and_size(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"12345")
    found = describe(path, kind=ArtifactKind.DATASET)
    digest = hashlib.sha256(b"12345").hexdigest()
    assert found == Artifact(sha256=digest, size_bytes=5, kind=ArtifactKind.DATASET, name="data.bin")


def test_folder_gives_back_what_was_stored_even_when_the_stage_writes_to_its_file_again(tmp_path: Path) -> None:
    workspace = LocalWorkspace(tmp_path)
    first = workspace.store(write(workspace, b"one"), kind=ArtifactKind.DATASET)
    second = workspace.store(write(workspace, b"two"), kind=ArtifactKind.DATASET)
    assert workspace.fetch(first).read_bytes() == b"one"
    assert workspace.fetch(second).read_bytes() == b"two"


def test_folder_says_what_it_lacks_and_where_it_looked(tmp_path: Path) -> None:
    missing = Artifact(sha256="0" * 64, size_bytes=1, kind=ArtifactKind.ADAPTER, name="adapter.safetensors")
    with pytest.raises(NotFoundError, match=r"adapter\.safetensors .* is not in .*artifacts"):
        LocalWorkspace(tmp_path).fetch(missing)


def test_folder_keeps_checkpoint_and_reports(tmp_path: Path) -> None:
    workspace = LocalWorkspace(tmp_path)
    workspace.save_checkpoint({"step": 4})
    workspace.report(1, 2, "n" * 1000)
    assert workspace.checkpoint == {"step": 4}
    assert workspace.reports == [Progress(done=1, total=2, note="n" * 300)]


def test_stored_file_crosses_the_wire_once_each_way(make_http: MakeHttp) -> None:
    here, there = make_http("here"), make_http("there")
    content = os.urandom(3_000_000)  # more than one chunk
    stored = here.store(write(here, content), kind=ArtifactKind.ADAPTER)
    assert here.store(write(here, content, "again"), kind=ArtifactKind.ADAPTER).sha256 == stored.sha256
    assert here.uploaded_bytes == len(content)

    assert here.fetch(stored).read_bytes() == content
    assert here.downloaded_bytes == 0  # it was here
    assert there.fetch(stored).read_bytes() == content
    assert there.fetch(stored).read_bytes() == content
    assert there.downloaded_bytes == len(content)


def test_file_that_the_server_has_is_not_uploaded_again(make_http: MakeHttp) -> None:
    here, there = make_http("here"), make_http("there")
    here.store(write(here, b"shard"), kind=ArtifactKind.SOFT_TARGETS)
    there.store(write(there, b"shard"), kind=ArtifactKind.SOFT_TARGETS)
    assert there.uploaded_bytes == 0


def test_file_that_the_server_lacks_is_an_error_and_leaves_nothing(make_http: MakeHttp) -> None:
    workspace = make_http("here")
    missing = Artifact(sha256="0" * 64, size_bytes=1, kind=ArtifactKind.ADAPTER, name="adapter.safetensors")
    with pytest.raises(NotFoundError):
        workspace.fetch(missing)
    assert not (workspace.cache / missing.sha256).exists()


def test_worker_is_told_checkpoints_and_progress(make_http: MakeHttp, lines: list[dict[str, Any]]) -> None:
    workspace = make_http("here")
    workspace.report(3, 4, "half way")
    workspace.save_checkpoint({"step": 4})
    assert lines == [{"progress": {"done": 3, "total": 4, "note": "half way"}}, {"checkpoint": {"step": 4}}]


@pytest.mark.parametrize("link", [True, False])
def test_kept_file_outlives_the_scratch_one(tmp_path: Path, link: bool) -> None:
    path, place = tmp_path / "scratch", tmp_path / "kept"
    path.write_bytes(b"x")
    keep(path, place, link=link)
    keep(path, place, link=link)
    path.unlink()
    assert place.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [place]


def test_where_links_are_not_possible_the_file_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "scratch"
    path.write_bytes(b"x")
    keep(path, tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"x"
