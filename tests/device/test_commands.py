from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.fakes.chat_engine import FakeEngine
from tests.fakes.device_server import KEY, DeviceServer
from typer.testing import CliRunner, Result

from everswarm.cli.device import app
from everswarm.device import runtime


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "device"
    monkeypatch.setenv("EVERSWARM_DEVICE_HOME", str(home))
    monkeypatch.setenv("EVERSWARM_KEY", KEY)
    monkeypatch.setattr(runtime, "_embedded", lambda threads: FakeEngine)
    return home


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=typed, catch_exceptions=False)


def run_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_device_walks_from_enrolment_to_a_sent_judgement(server: DeviceServer, device: Path) -> None:
    server.publish("v1.0", base=b"base", adapter=b"adapter")
    assert run_json("enroll", server.url, "--name", "phone")["name"] == "phone"
    assert run_json("sync")["downloaded_bytes"] == len(b"base") + len(b"adapter")
    assert run_json("chat", "3 km?", "--base")["text"] == "3000 m!"
    answer = run_json("chat", "3 km?")
    assert answer["text"] == "3000 m."
    judged = run_json("rate", "--last", "--rating", "4", "--correction", "3000 metres.", "--consent")
    assert (judged["id"], judged["queued"]) == (answer["id"], 1)
    assert run_json("sync")["feedback_sent"] == 1
    assert run_json("status")["feedback"] == {"queued": 0, "sent": 1, "rejected": 0}
    assert server.feedback[answer["id"]]["correction"] == "3000 metres."


def test_the_same_walk_in_words(server: DeviceServer, device: Path) -> None:
    server.publish("v1.0", base=b"base", adapter=b"adapter")
    assert "Next: everswarm device sync" in run("enroll", server.url, "--name", "phone").output
    assert "org/tiny v1.0: now in use." in run("sync").output
    assert "3000 m.\norg/tiny@v1.0, 7 tokens" in run("chat", "3 km?").output
    assert "not for training" in run("rate", "--last", "--rating", "2").output
    assert "1 waiting, 0 sent, 0 turned down" in run("status").output


def test_a_thumb_with_language_and_retention_reaches_the_server(server: DeviceServer, device: Path) -> None:
    server.publish("v1.0", base=b"base", adapter=None)
    run("enroll", server.url, "--name", "phone")
    run("sync")
    answer = run_json("chat", "3 km?")
    assert UUID(answer["id"]).version == 7
    run_json("rate", "--last", "--dislike", "--language", "en", "--keep-days", "90")
    assert "1 waiting" in run("status").output
    run("sync")
    stored = server.feedback[answer["id"]]
    assert (stored["liked"], stored["language"], stored["keep_days"]) == (False, "en", 90)


def test_the_same_question_again_is_told_with_the_judgement_on_the_first_answer(
    server: DeviceServer, device: Path
) -> None:
    server.publish("v1.0", base=b"base", adapter=b"adapter")
    run("enroll", server.url, "--name", "phone")
    run("sync")
    base, first, second = (run_json("chat", "3 km?", *more)["id"] for more in (["--base"], [], []))
    judged = [run_json("rate", "--id", id_, "--like") for id_ in (base, first, second)]
    assert [item["regenerated"] for item in judged] == [False, True, False]  # another model is a comparison


def test_a_conversation_keeps_its_turns_and_forgets_the_oldest_beyond_the_context(
    server: DeviceServer, device: Path
) -> None:
    server.publish("v1.0", base=b"base", adapter=None)
    run("enroll", server.url, "--name", "phone")
    run("sync")
    output = run("chat", typed=f"{'x' * 600}\nand then?\n{'y' * 600}\n\n").output
    output = " ".join(output.split())
    assert output.count("3000 m!") == 3
    assert output.count("its oldest turn is left out") == 1


def test_the_key_is_never_printed(server: DeviceServer, device: Path) -> None:
    printed = run("enroll", server.url).output + run("status").output + run("status", "--json").output
    assert KEY not in printed


def test_a_rating_outside_its_range_is_wrong_usage(device: Path) -> None:
    assert run("rate", "--last", "--rating", "6").exit_code == 2
    assert run("rate", "--last", "--like", "--keep-days", "0").exit_code == 2


@pytest.mark.parametrize("command", ["enroll", "sync", "chat", "rate", "status"])
def test_help_has_an_example(command: str) -> None:
    assert f"everswarm device {command}" in run(command, "--help").output
