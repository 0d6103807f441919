"""`everswarm doctor` on the tool servers of [tools.*] while no server runs: nothing is started, and little is asked."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.upstream import FakeUpstream

Doctor = Callable[..., Any]
Look = Callable[..., Any]


@pytest.fixture
def look(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream) -> Look:
    """Return how to have the doctor look at the tool server `lab`; all else is well."""

    def call(**said: Any) -> Any:
        monkeypatch.setenv("EVERSWARM_TOOLS", json.dumps({"lab": said}))
        result = doctor({"name": "up", "base_url": upstream.base_url, "model": "org/model"})
        return result, result.check("tools.lab")

    return call


def test_program_that_is_there_is_well_and_is_not_started(look: Look, tmp_path: Path) -> None:
    trace = tmp_path / "started"
    result, found = look(command=[sys.executable, "-c", f"open({str(trace)!r}, 'w')"])
    assert (result.code, found["level"]) == (0, "ok")
    assert not trace.exists()


def test_program_that_is_not_there_is_exit_1(look: Look) -> None:
    result, found = look(command=["no-such-program"])
    assert (result.code, found["level"]) == (1, "failed")
    assert found["text"] == "no-such-program is not on the PATH, nor a file"
    assert found["hint"] == "install it, or mend command in [tools.lab]"


@pytest.mark.skipif(sys.platform == "win32", reason="files have no such right there")
def test_file_that_may_not_be_run_is_told(look: Look, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/bin/sh\n", encoding="utf-8")
    _result, found = look(command=[str(tmp_path / "tool")])
    assert found["text"].endswith("tool is not a program that this user may run")


def test_variables_that_are_not_set_are_named_and_those_of_dotenv_are_read(
    look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ["LAB_HERE", "LAB_WRITTEN", "LAB_MISSING"]
    monkeypatch.setenv("LAB_HERE", "hunter2")
    (tmp_path / ".env").write_text("LAB_WRITTEN=hunter3\n", encoding="utf-8")
    result, found = look(command=[sys.executable], env=names)
    assert (result.code, found["text"]) == (1, "the variable LAB_MISSING is not set")
    assert found["hint"] == "set it, or take it out of [tools.lab]"
    assert "hunter" not in result.out + result.err
    monkeypatch.setenv("LAB_MISSING", "x")
    assert look(command=[sys.executable], env=names)[1]["level"] == "ok"


def test_token_that_is_not_set_is_named(look: Look) -> None:
    result, found = look(url="http://127.0.0.1:1/mcp", token_env="LAB_TOKEN")
    assert (result.code, found["text"]) == (1, "the variable LAB_TOKEN is not set")


def test_address_is_connected_to(look: Look) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        result, found = look(url=f"http://127.0.0.1:{port}/mcp")
    assert (result.code, found["level"], found["text"]) == (0, "ok", f"127.0.0.1:{port} answers")
    result, found = look(url=f"http://127.0.0.1:{port}/mcp")
    assert (result.code, found["text"]) == (1, f"127.0.0.1:{port} does not answer: Connection refused")
    assert found["hint"] == "start it, or mend url in [tools.lab]"


def test_address_behind_a_proxy_is_not_judged(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    result, found = look(url="https://tools.invalid/mcp")
    assert (result.code, found["level"]) == (0, "note")
