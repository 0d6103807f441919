from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.chat_engine import FakeEngine
from tests.fakes.device_server import DeviceServer

from everswarm.device.journal import open_journal, recall
from everswarm.device.runtime import DeviceRuntime
from everswarm.device.state import DeviceHome
from everswarm.device.sync import sync
from everswarm.errors import BadRequestError, ConfigurationError, UnavailableError
from everswarm.schemas.interaction import Message

QUESTION = [Message(role="user", content="How many metres are 3 km?")]


@pytest.fixture
def runtime(server: DeviceServer, home: Path) -> Iterator[DeviceRuntime]:
    """A synced device whose server is gone."""
    server.publish("v1.0", base=b"base", adapter=b"adapter")
    sync(home)
    server.stop()
    with DeviceRuntime(home, engine_factory=FakeEngine) as ready:
        yield ready


def engine(runtime: DeviceRuntime) -> FakeEngine:
    assert isinstance(runtime.engine, FakeEngine)
    return runtime.engine


def test_it_answers_offline_with_base_and_adapter(runtime: DeviceRuntime) -> None:
    pieces: list[str] = []
    answer = runtime.answer(QUESTION, max_tokens=20, on_token=pieces.append)
    assert (answer.text, answer.tokens, answer.model) == ("3000 m.", 7, "org/tiny@v1.0")
    assert pieces == ["3000 ", "m", "."]
    adapter = engine(runtime).adapter
    assert adapter
    assert adapter.read_bytes() == b"adapter"


def test_the_base_alone_answers_on_request(runtime: DeviceRuntime) -> None:
    answer = runtime.answer(QUESTION, adapter=False)
    assert (answer.text, answer.model) == ("3000 m!", "org/tiny")


def test_the_last_answer_is_remembered(runtime: DeviceRuntime) -> None:
    runtime.answer(QUESTION)
    answer = runtime.answer([Message(role="user", content="Again?")])
    with open_journal(runtime.place.journal_path) as connection:
        kept = recall(connection)
    assert (kept.id, kept.messages[0].content, kept.response) == (answer.id, "Again?", "3000 m.")


def test_a_question_beyond_the_context_is_said(runtime: DeviceRuntime) -> None:
    with pytest.raises(BadRequestError, match=r"exceeds the context. Its context is 2048 tokens"):
        runtime.answer([Message(role="user", content="x" * 2000)])


def test_an_engine_that_fails_while_answering_leaves_no_half_answer(runtime: DeviceRuntime) -> None:
    engine(runtime).break_off = True
    with pytest.raises(UnavailableError, match="out of memory"):
        runtime.answer(QUESTION)
    engine(runtime).stop()
    with pytest.raises(UnavailableError, match="The engine stopped"):
        runtime.answer(QUESTION)
    with open_journal(runtime.place.journal_path) as connection:
        assert connection.execute("SELECT count(*) FROM interactions").fetchone() == (0,)


def test_the_engine_ends_with_the_block(server: DeviceServer, home: Path) -> None:
    server.publish("v1.0", base=b"base", adapter=None)
    sync(home)
    with DeviceRuntime(home, engine_factory=FakeEngine) as runtime:
        assert "lora" not in runtime.answer(QUESTION).model
    assert engine(runtime).stopped
    assert "lora" not in engine(runtime).requests[0]


def test_a_device_without_a_model_says_what_to_do(home: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no model yet.*everswarm device sync"):
        DeviceRuntime(home, engine_factory=FakeEngine)


def test_a_model_file_that_is_gone_is_named(server: DeviceServer, home: Path) -> None:
    model = server.publish("v1.0", base=b"base", adapter=None)
    sync(home)
    DeviceHome(home).model_path(model.base).unlink()
    with pytest.raises(ConfigurationError, match=r"base\.gguf is gone"):
        DeviceRuntime(home, engine_factory=FakeEngine)
