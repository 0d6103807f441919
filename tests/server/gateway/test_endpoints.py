"""An endpoint elsewhere: whether it is there, serves the model, takes our credential, and for how long it is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.fakes.upstream import Behaviour, FakeUpstream

from everswarm.errors import ConfigurationError, CreditSpentError, QuotaSpentError, UnavailableError
from everswarm.llm.fake import FakeChatModel
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway import endpoints as endpoints_module
from everswarm.server.gateway.endpoints import Endpoint, RemoteEndpoint, credential_of
from everswarm.server.gateway.quota import Limit, Quota, Reservation
from everswarm.server.gateway.quota_store import open_quota_store
from everswarm.server.gateway.serving import serving, unreadable
from everswarm.settings import EndpointSettings


def entry(base_url: str = "http://127.0.0.1:1/v1", **said: object) -> EndpointSettings:
    return EndpointSettings.model_validate({"name": "up", "base_url": base_url, "model": "org/model", **said})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(endpoints_module, "LOOK_AT_MODELS_SECONDS", 0.02)


@contextmanager
def models_answer(status: int, body: bytes) -> Iterator[str]:
    """A server whose only answer is this one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


async def state_of(made: EndpointSettings) -> tuple[str, bool]:
    """Return the state after the first look, and whether requests are sent."""
    endpoint = RemoteEndpoint(made)
    assert (endpoint.state, endpoint.is_worth_a_try) == ("starting", bool(made.model))
    await endpoint.start()
    await until(lambda: endpoint.state != "starting")
    await endpoint.close()
    return endpoint.state, endpoint.is_worth_a_try


# --- what the list of models says


@pytest.mark.parametrize(
    ("model", "served"),
    [
        ("org/model", ["a", "org/model"]),
        ("mistral", ["mistral:latest"]),
        ("org/model:nebius", ["org/model"]),
        ("org/model", []),
    ],
)
def test_model_counts_as_served(model: str, served: list[str]) -> None:
    assert serving(entry(model=model), served) == (model, "")


def test_model_that_is_not_served_is_told_with_the_closest_ones_first() -> None:
    found = serving(entry(model="qwen2.5:7b"), ["a", "b", "c", "qwen2.5:7b-instruct"])
    assert found.problem == (
        "does not serve 'qwen2.5:7b'; it serves qwen2.5:7b-instruct, a, b (and 1 more). Set model to one that it serves"
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"profile": "ollama"}, "Set model to one that it serves, or `ollama pull org/model`"),
        ({"base_url": "http://box:11434/v1"}, "Set model to one that it serves, or `ollama pull org/model`"),
        ({"profile": "vllm"}, "Set model to one that it serves, or `vllm serve org/model --port 8001`"),
        ({"profile": "hf"}, "or look for another at https://huggingface.co/models?inference_provider=all"),
        ({}, "it serves a. Set model to one that it serves"),
    ],
)
def test_hint_is_that_of_the_kind_of_server(said: dict[str, str], told: str) -> None:
    assert serving(entry(**said), ["a"]).problem.endswith(told)


def test_ollama_without_any_model_serves_none() -> None:
    assert "does not serve 'org/model'; it serves none yet" in serving(entry(profile="ollama"), []).problem


def test_model_is_learnt_from_a_server_that_serves_one() -> None:
    assert serving(entry(profile="vllm", model=""), ["org/it", "its-adapter"]) == ("org/it", "")
    assert "does not say which model it serves. Set model" in serving(entry(profile="vllm", model=""), []).problem


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, b'{"data": []}', ""),
        (200, b'{"object": "list", "data": null}', ""),
        (404, b'{"data": []}', "/models answers with 404; does base_url end in /v1?"),
        (200, b"<html>", "/models answers with something that is no list of models; does base_url end in /v1?"),
        (200, b"[]", "/models answers with something that is no list of models; does base_url end in /v1?"),
        (200, b'{"data": [{"name": "x"}]}', "/models answers with something that is no list of models; does base_url "),
        (200, b"[" * 100_000, "/models answers with something that is no list of models; does base_url end in /v1?"),
    ],
)
def test_empty_list_is_told_from_what_is_none(status: int, body: bytes, told: str) -> None:
    found = unreadable(status, body)
    assert found.startswith(told)
    assert bool(found) == bool(told)


# --- a look at a real server


async def test_endpoint_that_serves_its_model_is_operational() -> None:
    with FakeUpstream(models=["org/model"]) as upstream:
        assert await state_of(entry(upstream.base_url)) == ("operational", True)


async def test_endpoint_that_lacks_the_model_says_so_and_is_sent_nothing() -> None:
    with FakeUpstream(models=["a", "b"]) as upstream:
        state, is_worth_a_try = await state_of(entry(upstream.base_url))
    assert state == "does not serve 'org/model'; it serves a, b. Set model to one that it serves"
    assert not is_worth_a_try


async def test_endpoint_that_got_the_model_is_used_without_a_restart() -> None:
    with FakeUpstream(models=["a"]) as upstream:
        endpoint = RemoteEndpoint(entry(upstream.base_url))
        await endpoint.start()
        await until(lambda: "does not serve" in endpoint.state)
        upstream.behaviour = Behaviour(models=["org/model"])
        await until(lambda: endpoint.state == "operational")
        assert endpoint.is_worth_a_try
        await endpoint.close()


async def test_endpoint_that_has_answered_serves_the_model_whatever_its_list_says() -> None:
    with FakeUpstream(models=["alias"]) as upstream:
        endpoint = RemoteEndpoint(entry(upstream.base_url))
        endpoint.note_success()
        endpoint.note_failure(UnavailableError("broke off"))
        await endpoint.start()
        await until(lambda: endpoint.state == "operational")
        assert endpoint.is_worth_a_try
        await endpoint.close()


async def test_model_of_the_server_is_asked_for_where_none_is_configured() -> None:
    with FakeUpstream(models=["org/it"]) as upstream:
        endpoint = RemoteEndpoint(entry(upstream.base_url, profile="vllm", model=""))
        assert (endpoint.model, endpoint.is_worth_a_try) == ("up", False)
        await endpoint.start()
        await until(lambda: endpoint.state == "operational")
        assert (endpoint.model, endpoint.is_worth_a_try) == ("org/it", True)
        await endpoint.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"not here"),
        (200, b"<html>"),
        (200, b'{"data": null}'),
        (200, b'{"models": []}'),
        (200, b"[]"),
        (200, b'{"data": [{"name": "x"}]}'),
        (200, b"[" * 100_000),
    ],
)
async def test_endpoint_without_a_list_that_can_be_read_counts_as_serving(status: int, body: bytes) -> None:
    with models_answer(status, body) as base_url:
        assert await state_of(entry(base_url)) == ("operational", True)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "the endpoint 'up' refuses our credential (401: no). The operator must set another."),
        (503, "the endpoint 'up' answered with 503: no"),
    ],
)
async def test_endpoint_that_refuses_says_why_and_stays_worth_a_try(status: int, told: str) -> None:
    with models_answer(status, b'{"error": {"message": "no"}}') as base_url:
        assert await state_of(entry(base_url)) == (told, True)


async def test_endpoint_that_is_not_there_is_found_when_it_comes() -> None:
    state, is_worth_a_try = await state_of(entry())
    assert state == "the endpoint 'up' does not answer: Connection refused."
    assert is_worth_a_try


# --- credentials


def test_credential_comes_from_the_environment_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = entry(api_key_env="ROUTER_KEY")
    with pytest.raises(ConfigurationError, match=r"the variable ROUTER_KEY, which is not set\. Set it, or remove"):
        credential_of(made)
    (tmp_path / ".env").write_text("ROUTER_KEY=from-the-file\n", encoding="utf-8")
    assert credential_of(made) == "from-the-file"
    monkeypatch.setenv("ROUTER_KEY", " from-the-environment\n")
    assert credential_of(made) == "from-the-environment"


# --- quota


async def test_endpoint_out_of_credit_is_closed_until_its_reset_and_one_out_of_quota_until_it_says() -> None:
    router = RemoteEndpoint(entry("https://router.huggingface.co/v1"))
    other = RemoteEndpoint(entry("https://example.org/v1"))
    assert router.closes_for_seconds(QuotaSpentError("429", retry_after_seconds=40)) == 40
    assert 40 < router.closes_for_seconds(CreditSpentError("402", retry_after_seconds=40)) <= 31 * 86_400
    assert other.closes_for_seconds(CreditSpentError("402", retry_after_seconds=40)) == pytest.approx(3600, abs=1)


async def test_endpoint_shows_what_is_left_of_its_scarcest_limit(tmp_path: Path) -> None:
    quota = Quota("q:none", (Limit("tokens", 1000, 3600.0), Limit("requests", 2, 60.0)))
    endpoint = Endpoint("up", model="m", roles=["primary"], client=FakeChatModel(["x"]), quota=quota)
    store = open_quota_store(home=tmp_path, database_url=None)
    reservation = await store.reserve(quota, 100, priority=Priority.INTERACTIVE)
    assert isinstance(reservation, Reservation)
    view = await endpoint.view(store)
    assert [(limit.unit, limit.held, limit.left) for limit in view.limits] == [("tokens", 100, 900), ("requests", 1, 1)]
    assert endpoint.left_share == 0.5
    await store.close_key(quota.key, seconds=60, reason="429")
    view = await endpoint.view(store)
    assert view.closed_until is not None
    assert endpoint.left_share == 0.0
    await store.close()
