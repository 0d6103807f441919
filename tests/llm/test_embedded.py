"""The supervisor, on a child that plays the engine; and once on the real one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from everswarm.errors import MissingExtraError, UnavailableError
from everswarm.llm import embedded
from everswarm.llm.embedded import EmbeddedEngine
from everswarm.llm.openai_client import OpenAIClient
from everswarm.llm.pull import pull_gguf
from everswarm.settings import EMBEDDED_MODEL, Settings

PLAYS_ENGINE = (
    "print('noise'); print('{\"address\": \"http://127.0.0.1:1\"}', flush=True); import sys; sys.stdin.read()"
)
DIES_AT_ONCE = "import sys; print('no such model', file=sys.stderr); sys.exit(3)"


def engine_of(script: str, log_path: Path | None = None) -> EmbeddedEngine:
    engine = EmbeddedEngine(Path("model.gguf"), model="m", threads=1, context_tokens=512, parallel=1, log_path=log_path)
    engine._arguments = ["-c", script]
    return engine


def wait_for(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.01)


def test_engine_answers_at_the_address_that_the_child_prints():
    engine = engine_of(PLAYS_ENGINE)
    assert engine.state == "starting"
    with pytest.raises(UnavailableError, match="does not answer: starting"):
        _ = engine.base_url
    engine.start()
    engine.wait_ready(30)
    assert (engine.state, engine.base_url) == ("operational", "http://127.0.0.1:1/v1")
    engine.stop()
    assert engine.state == "stopped"
    engine.stop()


def test_killed_child_is_started_again():
    engine = engine_of(PLAYS_ENGINE)
    engine.start()
    engine.wait_ready(30)
    first = engine.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: engine.pid != first)
    engine.wait_ready(30)
    engine.stop()


def test_child_that_cannot_start_is_said_with_its_log(tmp_path):
    engine = engine_of(DIES_AT_ONCE, tmp_path / "logs" / "engine.log")
    engine.start()
    wait_for(lambda: "ended with code 3" in engine.state)
    with pytest.raises(
        UnavailableError, match=r"starting again, since it ended with code 3\. Its log is .*engine\.log"
    ):
        engine.wait_ready(0.01)
    engine.stop()
    assert "no such model" in (tmp_path / "logs" / "engine.log").read_text()


def test_failure_to_start_is_said_and_tried_again(monkeypatch):
    start, failures = embedded.start_python_child, [OSError(12, "Cannot allocate memory")]

    def start_at_the_second_try(*arguments, **options):
        if failures:
            raise failures.pop()
        assert "Cannot allocate memory" in engine.state
        return start(*arguments, **options)

    monkeypatch.setattr(embedded, "start_python_child", start_at_the_second_try)
    engine = engine_of(PLAYS_ENGINE)
    engine.start()
    engine.wait_ready(30)
    assert engine.state == "operational"
    engine.stop()


def test_stop_before_the_child_answers():
    engine = engine_of("import time; time.sleep(60)")
    engine.start()
    wait_for(lambda: engine.pid is not None)
    engine.stop()
    with pytest.raises(UnavailableError, match="stopped"):
        engine.wait_ready(0.01)


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'everswarm\[engine\]'"):
        engine_of(PLAYS_ENGINE).start()


@pytest.mark.model
async def test_real_engine_answers_and_comes_back_after_kill(tmp_path):
    path = pull_gguf(EMBEDDED_MODEL, Settings().models_dir).path
    engine = EmbeddedEngine(
        path, model=EMBEDDED_MODEL, threads=1, context_tokens=512, parallel=1, log_path=tmp_path / "engine.log"
    )
    engine.start()
    client = OpenAIClient(lambda: engine.base_url, name="the engine")
    ask = {
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    try:
        engine.wait_ready(120)
        first = await client.chat(ask)
        assert "Tokyo" in first["choices"][0]["message"]["content"]
        assert first["model"] == EMBEDDED_MODEL
        killed = engine.pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: engine.pid != killed)
        engine.wait_ready(120)
        pieces = [chunk async for together in client.stream(ask) for chunk in together]
        text = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
        assert text == first["choices"][0]["message"]["content"]
    finally:
        await client.close()
        engine.stop()
