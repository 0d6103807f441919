"""`everswarm swarm`: what it says before it spends anything, what it prints and writes, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.cli import main as cli
from everswarm.cli.swarm import Plan

PATIENCE_SECONDS = 30.0


class Result(NamedTuple):
    code: int
    out: str  # with single spaces: the width does not matter
    err: str
    raw: str

    @property
    def data(self) -> Any:
        return json.loads(self.raw)


Swarm = Callable[..., Result]


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(answer="That makes 4 + 6 = 10.\nA: 10", models=["org/model"]) as running:
        yield running


@pytest.fixture
def swarm(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, upstream: FakeUpstream
) -> Swarm:
    """Return how to type `everswarm swarm …` on a machine whose only endpoint is the fake."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)

    def call(*arguments: object, **endpoint: object) -> Result:
        entry = {"name": "fake", "base_url": upstream.base_url, "model": "org/model", **endpoint}
        monkeypatch.setenv("EVERSWARM_ENDPOINTS", json.dumps([entry]))
        monkeypatch.setattr(sys, "argv", ["everswarm", "swarm", *map(str, arguments), "--home", str(home)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code if isinstance(ended.value.code, int) else 0
        return Result(code, " ".join(out.split()), " ".join(err.split()), out)

    return call


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Two right answers of three, and a line that is broken."""
    lines = [{"question": f"How many are {n}?", "reference": f"A: {n}", "kind": "mathematics"} for n in (10, 11)]
    lines.append({"question": "What is left of 10?", "reference": "10", "kind": "mathematics"})
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join([*map(json.dumps, lines), "{broken"]) + "\n", encoding="utf-8")
    return file


def test_table_has_quality_with_its_interval_and_what_it_cost(swarm: Swarm, questions: Path) -> None:
    result = swarm("eval", questions, "--strategies", "single")
    assert result.code == 0
    assert "lines read: 4; questions with a reference: 3, 0 repeat one" in result.out
    assert "line 4: not JSON" in result.out
    assert "3 questions, each with single: 3 answers; tokens at worst: " in result.out
    assert "left of the scarcest quota: no limit" in result.out
    assert "0.667 [0.000, 1.000]" in result.out
    assert "quality per 1,000 tokens [95 %]" in result.out
    assert "Quality is 1 for a right final answer and 0 for another." in result.out
    assert "[swarm.strategies]" not in result.out


def test_json_is_all_that_goes_to_standard_output(swarm: Swarm, questions: Path) -> None:
    result = swarm("eval", questions, "--strategies", "single", "--json")
    assert result.code == 0
    (single,) = result.data["strategies"]
    assert (single["strategy"], single["prompts"], single["quality"]["value"]) == ("single", 3, pytest.approx(2 / 3))
    assert result.data["by_kind"]["mathematics"] == result.data["strategies"]
    assert (result.data["is_complete"], result.data["toml"], "runs" in result.data) == (True, "", False)
    assert result.data["file"]["errors"][0]["line"] == 4


def test_output_has_every_answer(swarm: Swarm, questions: Path, tmp_path: Path) -> None:
    result = swarm("eval", questions, "--strategies", "single", "--limit", 2, "--output", tmp_path / "measured.json")
    assert result.code == 0
    data = json.loads((tmp_path / "measured.json").read_text(encoding="utf-8"))
    assert [(run["line"], run["quality"], run["strategy_used"]) for run in data["runs"]] == [
        (1, 1.0, "single"),
        (2, 0.0, "single"),
    ]
    assert data["runs"][0]["answer"].endswith("A: 10")
    assert data["options"]["strategies"] == ["single"]


def test_every_question_is_asked_once_with_the_options(swarm: Swarm, questions: Path, upstream: FakeUpstream) -> None:
    options = ("--strategies", "single", "--max-tokens", 17, "--temperature", 0.5)
    for _ in range(2):  # nothing is remembered from the first time
        assert swarm("eval", questions, *options).code == 0
    assert len(upstream.requests) == 6
    assert {(request["max_tokens"], request["temperature"]) for request in upstream.requests} == {(17, 0.5)}


def test_dry_run_says_what_it_would_cost_and_asks_nobody(swarm: Swarm, questions: Path, upstream: FakeUpstream) -> None:
    quota = {"tokens_per_hour": 2000}
    result = swarm("eval", questions, "--strategies", "single", "--dry-run", quota=quota)
    assert (result.code, upstream.requests) == (0, [])
    assert "left of the scarcest quota: 2,000 tokens" in result.out
    told = swarm("eval", questions, "--strategies", "single", "--dry-run", "--json", quota=quota).data["plan"]
    assert (told["answers"], told["left_tokens"], told["is_priced"]) == (3, 2000, False)
    assert 3 * 256 < told["worst_case_tokens"] < 2000


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ({"quota": {"tokens_per_hour": 700}}, "It may need more than is left of a quota, and then waits."),
        ({"price_per_million_answer_tokens": 0.2}, "An endpoint costs money."),
    ],
)
def test_what_costs_is_asked_for_first(
    swarm: Swarm, questions: Path, upstream: FakeUpstream, endpoint: dict[str, object], told: str
) -> None:
    result = swarm("eval", questions, "--strategies", "single", **endpoint)
    assert (result.code, upstream.requests) == (2, [])
    assert told in result.err
    assert "add --yes" in result.err
    options = ("--strategies", "single", "--yes", "--max-tokens", 100, "--concurrency", 1)
    assert swarm("eval", questions, *options, **endpoint).code == 0


@pytest.mark.parametrize(
    ("worst_case", "left", "is_priced", "needs"),
    [
        (100, None, False, False),
        (None, None, False, False),
        (100, 100, False, False),
        (101, 100, False, True),
        (None, 100, False, True),
        (0, 100, True, True),
    ],
)
def test_consent_is_needed_for_money_and_for_more_than_is_left(
    worst_case: int | None, left: int | None, is_priced: bool, needs: bool
) -> None:
    assert Plan(1, worst_case, left, is_priced).needs_consent is needs


def test_endpoint_that_fails_is_shown_and_ends_with_1(swarm: Swarm, questions: Path, upstream: FakeUpstream) -> None:
    upstream.behaviour = Behaviour(status=400, body=b'{"error": {"message": "no such thing"}}', models=["org/model"])
    result = swarm("eval", questions, "--strategies", "single", "--limit", 1)
    assert result.code == 1
    assert "single: 1 of 1 failed, and count as 0: " in result.out
    assert "no such thing" in result.out


def test_nobody_who_answers_is_said_with_the_reason(swarm: Swarm, questions: Path, upstream: FakeUpstream) -> None:
    upstream.die()
    result = swarm("eval", questions, "--strategies", "single")
    assert result.code == 1
    assert result.err.startswith("Not available now. No endpoint can answer. 'fake': ")
    assert "everswarm doctor" in result.err


def test_one_question_is_said_in_the_singular(swarm: Swarm, questions: Path) -> None:
    result = swarm("eval", questions, "--strategies", "single", "--limit", 1, "--dry-run")
    assert "1 question, each with single: 1 answer; tokens at worst: " in result.out


def test_questions_are_asked_when_the_tool_servers_are_there(
    swarm: Swarm, questions: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcp", reason="needs mcp, of the extra 'server'")
    questions.write_text('{"question": "What is the weather in the city of Oslo?", "reference": "rain"}\n')
    lab = {"command": [sys.executable, str(Path(__file__).resolve().parents[1] / "fakes" / "mcp_server.py")]}
    monkeypatch.setenv("EVERSWARM_TOOLS", json.dumps({"lab": lab, "lost": {"command": ["no-such-program-here"]}}))
    monkeypatch.setenv("EVERSWARM_ROLES", json.dumps({"primary": {"tools": ["lab"]}}))
    result = swarm("eval", questions, "--strategies", "single")
    assert result.code == 0
    offered = {tool["function"]["name"] for request in upstream.requests for tool in request.get("tools", [])}
    assert "lab__weather" in offered
    assert "Asked without the tools of 'lost': cannot be started: 'no-such-program-here'" in result.err


def test_tool_server_that_is_slow_to_start_holds_up_only_a_little(
    swarm: Swarm, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mcp", reason="needs mcp, of the extra 'server'")
    monkeypatch.setattr("everswarm.cli.swarm.TOOLS_READY_SECONDS", 0.1)
    slow = {"command": [sys.executable, "-c", "import sys; sys.stdin.read()"]}
    monkeypatch.setenv("EVERSWARM_TOOLS", json.dumps({"slow": slow}))
    result = swarm("eval", questions, "--strategies", "single", "--limit", 1)
    assert result.code == 0
    assert "Asked without the tools of 'slow': starting…" in result.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_interrupt_shows_what_is_finished(swarm: Swarm, questions: Path, upstream: FakeUpstream) -> None:
    upstream.script.extend([upstream.behaviour, Behaviour(first_byte_seconds=PATIENCE_SECONDS)])

    def interrupt() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(upstream.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # a shell that starts the tests in the background has them ignore interrupts
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hand = threading.Thread(target=interrupt)
    hand.start()
    try:
        result = swarm("eval", questions, "--strategies", "single", "--concurrency", 1)
    finally:
        hand.join()
        signal.signal(signal.SIGINT, before)
    assert result.code == 130
    assert "Interrupted after 1 answer." in result.err
    assert "Stopped before the end: these are the 1 of 3 questions" in result.out
    assert "1.000 [1.000, 1.000]" in result.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--strategies", "debate"), "'debate' is no strategy; there are calculate, single,"),
        (("--strategies", "singel"), "Did you mean 'single'"),
        (("--strategies", " , "), "is no strategy"),
        (("--output", "."), ". cannot be written: give the path of a file"),
        (("--output", "none/measured.json"), "cannot be written"),
    ],
)
def test_wrong_usage_is_exit_2_before_anything_is_asked(
    swarm: Swarm, questions: Path, upstream: FakeUpstream, arguments: tuple[str, ...], told: str
) -> None:
    result = swarm("eval", questions, *arguments)
    assert (result.code, upstream.requests) == (2, [])
    assert told.lower() in result.err.lower()


def test_file_that_is_not_there_is_exit_2(swarm: Swarm) -> None:
    result = swarm("eval", "none.jsonl", "--strategies", "single")
    assert result.code == 2
    assert "none.jsonl cannot be read: " in result.err


def test_server_elsewhere_is_not_asked(swarm: Swarm, questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_SERVER", "http://127.0.0.1:9")
    result = swarm("eval", questions)
    assert result.code == 2
    assert "Run it on that server's machine" in result.err


def test_too_little_feedback_to_learn_from_is_said(swarm: Swarm, tmp_path: Path) -> None:
    words, data = swarm("train"), swarm("train", "--json").data
    assert words.code == 0
    assert "0 outcomes of 0 people: 0 to learn from, 0 held out to test on" in words.out
    assert (data["outcomes"], data["saved"], data["score"]) == (0, False, None)
    assert data["reason"] in words.out
    assert not (tmp_path / "home" / "router.json").exists()
