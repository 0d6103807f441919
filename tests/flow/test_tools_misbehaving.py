"""Whatever a tool does, the answer ends within its bounds, the trace says what happened, and the server stays well.

The real server, as a process of its own, with a real server of tools as its child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream
from tests.flow.served_gateway import until

pytest.importorskip("mcp", reason="needs mcp, of the extra 'server'")

FAKES = Path(__file__).resolve().parents[1] / "fakes"
TOOL_SERVER = f"""
import os, sys
sys.path.insert(0, {str(FAKES)!r})
from mcp_server import server

@server.tool()
def collapse() -> str:
    '''End the whole server.'''
    os._exit(3)

server.run("stdio")
"""
ANSWER = "The capital of France is Paris."
SETTINGS = """
[engine]
enabled = false
[gateway]
retries = 0
[roles.primary]
tools = ["fake"]
[swarm]
tool_steps = 3
[tools.fake]
command = {command}
timeout_seconds = 1
[[endpoints]]
name = "up"
base_url = "{base_url}"
model = "org/model"
roles = ["primary"]
timeout_seconds = 20
"""
QUESTIONS = {  # each shares words with the description of its tool
    "hang": "Hang, please",
    "flood": "Flood me, please",
    "binary": "Give a binary, please",
    "boom": "Make it boom, please",
    "collapse": "Collapse, please",
    "weather": "What is the weather in the city of Oslo?",
}
FLOODS, FLOOD_MB = 10, 5


class Served:
    """`everswarm serve`, asked over HTTP."""

    def __init__(self, home: Path, upstream: FakeUpstream) -> None:
        self.upstream = upstream
        self._home = home
        config = home / "everswarm.toml"
        home.mkdir()
        self._tools = home / "tools.py"
        self._tools.write_text(TOOL_SERVER, encoding="utf-8")
        command = json.dumps([sys.executable, str(self._tools)])
        config.write_text(SETTINGS.format(command=command, base_url=upstream.base_url), encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "everswarm.cli.main", "serve", "--port", "0", "--home", str(home), "--no-worker"],
            env={**os.environ, "EVERSWARM_CONFIG": str(config), "OMP_NUM_THREADS": "1"},
            stdout=(home / "server.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        self.http: httpx.Client = until(self._client, what="the start of the server")  # type: ignore[assignment]
        until(self.tool_processes, what="the start of the tools")

    def _client(self) -> httpx.Client | None:
        assert self.process.poll() is None, (self._home / "server.log").read_text()
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            url = json.loads((self._home / "server.json").read_text())["url"]
            key = (self._home / "cli.key").read_text().strip()
            client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            if client.get("/api/health").status_code == 200:
                return client
            client.close()
        return None

    def tool_processes(self) -> list[psutil.Process]:
        """Return the servers of tools that run as children of this server."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if str(self._tools) in _command(child)]
        return []

    def memory_mb(self) -> float:
        """Return what the server holds now."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    def ask(self, tool: str, *calls: dict[str, Any], stream: bool = False) -> httpx.Response:
        """Have the model call `tool` with each of `calls`, one after the other, and then answer."""
        for number, arguments in enumerate(calls):
            self.upstream.script.append(Behaviour(body=_call_of(tool, arguments, number), headers=_JSON))
        body = {"model": "everswarm", "messages": [{"role": "user", "content": QUESTIONS[tool]}], "stream": stream}
        answer = self.http.post("/v1/chat/completions", json=body)
        self.upstream.script.clear()
        return answer

    def trace(self, answer: httpx.Response) -> dict[str, Any]:
        """Return how an answer came about."""
        path = f"/api/interactions/{answer.headers['X-Interaction-Id']}/trace"
        until(lambda: self.http.get(path).status_code == 200, what="the trace")
        trace: dict[str, Any] = self.http.get(path).json()
        return trace

    def tool_steps(self, answer: httpx.Response) -> list[tuple[str, str]]:
        """Return outcome and detail of what tools were asked."""
        return [(step["outcome"], step.get("detail", "")) for step in self.trace(answer)["steps"] if step.get("tool")]

    def is_well(self) -> bool:
        """Say whether a question without tools is answered."""
        body = {"model": "primary", "messages": [{"role": "user", "content": "capital of France?"}]}
        return _text(self.http.post("/v1/chat/completions", json=body)) == ANSWER

    def close(self) -> None:
        """End it, and what it left."""
        left = self.tool_processes()
        self.http.close()
        self.process.kill()
        self.process.wait()
        for child in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


_JSON = {"Content-Type": "application/json"}


def _call_of(tool: str, arguments: dict[str, Any], number: int) -> bytes:
    function = {"name": f"fake__{tool}", "arguments": json.dumps(arguments)}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
    }
    completion = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "org/model",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
    }
    return json.dumps(completion).encode()


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that do not end it."""
    with FakeUpstream() as upstream:
        running = Served(tmp_path_factory.mktemp("tools") / "home", upstream)
        try:
            until(lambda: weather_answers(running), what="the connection to the tools")
            yield running
        finally:
            running.close()


def weather_answers(served: Served) -> bool:
    """Say whether the tools are connected."""
    answer = served.ask("weather", {"city": "Oslo"})
    return answer.status_code == 200 and served.tool_steps(answer) == [("done", "18 degrees and rain in Oslo")]


def test_tool_that_hangs_is_given_up_after_its_timeout(served: Served) -> None:
    answer = served.ask("hang", {})
    assert _text(answer) == ANSWER
    assert served.tool_steps(answer) == [("failed", "did not answer within 1 s")]
    assert "did not answer within 1 s" in served.upstream.requests[-1]["messages"][-1]["content"]
    assert served.is_well()


def test_model_that_calls_for_ever_is_stopped_after_its_steps(served: Served) -> None:
    calls = [{"city": f"Oslo {number}"} for number in range(3)]
    before = len(served.upstream.requests)
    answer = served.ask("weather", *calls)
    assert _text(answer) == ANSWER
    assert [outcome for outcome, _ in served.tool_steps(answer)] == ["done"] * 3
    assert "no more tools: 3 steps are the limit" in served.trace(answer)["notes"]
    assert len(served.upstream.requests) == before + 4
    assert served.upstream.requests[-1]["tool_choice"] == "none"


def test_model_that_asks_for_the_same_for_ever_is_stopped_at_once(served: Served) -> None:
    answer = served.ask("weather", {"city": "Oslo"}, {"city": "Oslo"})
    assert _text(answer) == ANSWER
    assert "no more tools: the model asked for the same again" in served.trace(answer)["notes"]


def test_model_that_only_calls_tools_is_a_clear_error(served: Served) -> None:
    answer = served.ask("weather", *[{"city": f"Oslo {number}"} for number in range(4)])
    assert answer.status_code == 503
    assert "gave no answer" in answer.text
    assert served.is_well()


def test_flood_is_cut_and_not_kept(served: Served) -> None:
    served.ask("flood", {"megabytes": FLOOD_MB})
    before_mb = served.memory_mb()
    for _ in range(FLOODS):
        answer = served.ask("flood", {"megabytes": FLOOD_MB})
        assert _text(answer) == ANSWER
    ((outcome, detail),) = served.tool_steps(answer)
    assert (outcome, len(detail)) == ("done", 400)
    shown = served.upstream.requests[-1]["messages"][-1]["content"]
    assert len(shown) < 10_000
    assert "characters left out here" in shown or len(shown) < 8000
    assert served.memory_mb() - before_mb < FLOODS * FLOOD_MB / 2, "floods are not kept"
    assert served.is_well()


def test_picture_and_bytes_are_named_and_not_shown(served: Served) -> None:
    answer = served.ask("binary", {})
    assert _text(answer) == ANSWER
    assert [outcome for outcome, _ in served.tool_steps(answer)] == ["done"]
    shown = served.upstream.requests[-1]["messages"][-1]["content"]
    assert "not shown" in shown
    assert "\x00" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("stream", [False, True])
def test_tool_that_fails_is_told_to_the_model(served: Served, stream: bool) -> None:
    answer = served.ask("boom", {}, stream=stream)
    assert answer.status_code == 200
    ((outcome, detail),) = served.tool_steps(answer)
    assert outcome == "failed"
    assert "boom" in detail
    assert "failed: " in served.upstream.requests[-1]["messages"][-1]["content"]


def test_server_of_tools_that_dies_comes_back(served: Served) -> None:
    (first,) = served.tool_processes()
    answer = served.ask("collapse", {})
    assert _text(answer) == ANSWER
    ((outcome, detail),) = served.tool_steps(answer)
    assert (outcome, "ended during the call" in detail) == ("failed", True)
    assert served.is_well()
    until(lambda: weather_answers(served), what="the return of the tools")
    (second,) = served.tool_processes()
    assert second.pid != first.pid


@pytest.mark.parametrize(
    ("ending", "in_a_call"),
    [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGKILL, False)],
    ids=["terminated", "terminated while a tool hangs", "killed"],
)
def test_servers_of_tools_end_with_the_server(tmp_path: Path, ending: signal.Signals, in_a_call: bool) -> None:
    with FakeUpstream() as upstream:
        served = Served(tmp_path / "home", upstream)
        try:
            until(lambda: weather_answers(served), what="the connection to the tools")
            children = served.tool_processes()
            assert len(children) == 1
            if in_a_call:
                served.ask("hang", {})
            served.process.send_signal(ending)
            assert served.process.wait(30) == (0 if ending is signal.SIGTERM else -signal.SIGKILL)
            until(lambda: not any(map(psutil.Process.is_running, children)), what="the end of the tools", seconds=20)
        finally:
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            served.close()
