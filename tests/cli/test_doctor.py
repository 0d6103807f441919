"""`everswarm doctor`: what it finds, what it advises, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.upstream import FakeUpstream

from everswarm.cli import doctor as doctor_command
from everswarm.cli import doctor_checks, doctor_endpoints
from everswarm.cli import main as cli
from everswarm.cli.local import announce
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.limits import quota_of
from everswarm.server.gateway.profiles import expand
from everswarm.server.gateway.quota import Reservation
from everswarm.server.gateway.quota_store import open_quota_store
from everswarm.settings import WEB_ROLES, Settings

Doctor = Callable[..., Any]


def remote(upstream: FakeUpstream, **said: Any) -> dict[str, Any]:
    return {"name": "up", "base_url": upstream.base_url, "model": "org/model", **said}


DEAD = {"name": "dead", "base_url": "http://127.0.0.1:1/v1", "model": "org/model"}


# --- endpoints


def test_endpoint_that_answers_is_usable_with_its_latency(doctor: Doctor, upstream: FakeUpstream) -> None:
    result = doctor(remote(upstream))
    row = result.endpoint("up")
    assert (result.code, result.data["usable"], result.data["silent_roles"]) == (0, True, [])
    assert (row["state"], row["reachable"], row["model_served"], row["can_answer"]) == ("operational", True, True, True)
    assert row["latency_ms"] > 0
    assert upstream.requests == [], "it costs no tokens"


def test_role_that_nobody_can_answer_for_is_exit_1(doctor: Doctor, upstream: FakeUpstream) -> None:
    result = doctor(remote(upstream, roles=["primary"]), {**DEAD, "roles": ["specialist"]})
    assert (result.code, result.data["silent_roles"]) == (1, ["specialist"])
    row = result.endpoint("dead")
    assert (row["state"], row["reachable"], row["latency_ms"]) == ("does not answer", False, None)
    assert row["problem"] == (
        "Does not answer: Connection refused. Start it, or mend its base_url, http://127.0.0.1:1/v1."
    )


def test_dead_endpoint_beside_one_that_can_answer_is_told_and_exit_0(doctor: Doctor, upstream: FakeUpstream) -> None:
    result = doctor(DEAD, remote(upstream), options=())
    assert result.code == 0
    assert re.search(r"✗ dead +Does not answer: Connection refused\.", result.out)
    assert "Every role has an endpoint that can answer; 1 of 2 endpoints cannot." in result.out


def test_model_that_is_not_served_comes_with_those_that_are(doctor: Doctor, upstream: FakeUpstream) -> None:
    result = doctor(remote(upstream, profile="ollama", model="mistral"))
    row = result.endpoint("up")
    assert (result.code, row["state"], row["reachable"], row["model_served"]) == (1, "lacks the model", True, False)
    assert row["problem"] == (
        "Does not serve 'mistral'; it serves org/model. Set model to one that it serves, or `ollama pull mistral`."
    )


def test_credential_that_is_not_set_is_a_row_and_no_error(doctor: Doctor) -> None:
    result = doctor({"profile": "hf"})
    assert (result.code, result.data["silent_roles"]) == (1, ["primary", "coordinator", "specialist"])
    row = result.endpoint("hf-primary")
    assert (row["state"], row["reachable"]) == ("no credential", None)
    assert row["problem"] == "Takes its credential from the variable HF_TOKEN, which is not set. Set it."


def test_endpoint_without_its_credential_shows_no_quota(doctor: Doctor) -> None:
    assert doctor({"profile": "hf"}).endpoint("hf-primary")["limits"] == []
    page = doctor(options=()).out
    assert ("not known" in page, "tokens left" in page) == (True, False)


def test_address_without_a_list_of_models_is_unverified_and_no_error(doctor: Doctor, home: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as files:  # as `python -m http.server`
        threading.Thread(target=files.serve_forever, daemon=True).start()
        said = {**DEAD, "base_url": f"http://127.0.0.1:{files.server_port}"}
        result = doctor(said)
        page = " ".join(doctor(said, options=()).out.split())
        unnamed = doctor({"profile": "vllm", "base_url": said["base_url"]}).endpoint("vllm")
        files.shutdown()
    row = result.endpoint("dead")
    assert (result.code, row["state"], row["problem"], row["model_served"]) == (0, "unverified", "", None)
    assert row["warnings"] == ["Unverified: /models answers with 404; does base_url end in /v1?"]
    assert "! dead Unverified: /models answers with 404; does base_url end in /v1?" in page
    assert "Everything that is needed works." not in page
    assert unnamed["problem"].endswith(
        "does base_url end in /v1? Does not say which model it serves. Set model to its name."
    )


def test_limit_that_has_no_room_for_two_answers_is_told(doctor: Doctor, upstream: FakeUpstream) -> None:
    result = doctor(remote(upstream, quota={"tokens_per_hour": 9_000, "tokens_per_minute": 1_500}))
    [told] = result.endpoint("up")["warnings"]
    assert result.code == 0
    assert told.startswith("Its smallest token limit, 1,500, is less than twice its answer_tokens, 1,024. So an answer")
    assert told.endswith("set answer_tokens to 750 or less.")
    assert doctor(remote(upstream, quota={"tokens_per_hour": 2_048})).endpoint("up")["warnings"] == []


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_no_line_is_wider_than_the_page_and_short_names_are_whole(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = remote(upstream, name="a-name-that-nobody-wants-to-type-twice", quota={"requests_per_day": 10**9})
    dead = {**DEAD, "name": "hf-coordinator", "roles": ["coordinator", "specialist"]}
    page = doctor(long, {**dead, "model": "mistralai/Mistral-7B-Instruct-v0.3"}, options=()).out
    assert max(map(len, page.splitlines())) <= columns
    assert "hf-coordinator" in page
    if columns == 80:
        assert "a-name-that-nobod…" in page
        assert "coordinator," in page


def test_problem_of_several_endpoints_is_printed_once(doctor: Doctor) -> None:
    result = doctor({"profile": "hf"}, options=())
    assert result.out.count("HF_TOKEN") == 1
    assert "No endpoint can answer as primary, coordinator, specialist." in result.out


def test_credential_is_never_printed(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream) -> None:
    monkeypatch.setenv("ROUTER_KEY", "hunter2")
    for options in ((), ("--json",)):
        result = doctor(remote(upstream, api_key_env="ROUTER_KEY"), options=options)
        assert (result.code, "hunter2" in result.out + result.err) == (0, False)


def test_settings_that_cannot_be_used_are_exit_2(doctor: Doctor) -> None:
    assert doctor({"profile": "olama"}).code == 2
    twice = doctor({"profile": "hf"}, {"profile": "hf"})
    assert (twice.code, "Two endpoints have the name 'hf-primary'" in twice.err) == (2, True)


def test_no_endpoint_at_all_is_exit_1_and_says_what_to_configure(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSWARM_ENGINE__ENABLED", "false")
    result = doctor(options=())
    assert result.code == 1
    assert "There is no endpoint. Enable [engine], or add [[endpoints]]." in result.out


def test_each_address_is_asked_once(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream) -> None:
    probed: list[str] = []
    probe = doctor_endpoints._probe

    async def count(subject: doctor_endpoints.Subject) -> doctor_endpoints.Found:
        probed.append(subject.entry.name)
        return await probe(subject)

    monkeypatch.setattr(doctor_endpoints, "_probe", count)
    doctor(remote(upstream, roles=["primary"]), remote(upstream, name="two", roles=["specialist"]))
    assert len(probed) == 1


# --- roles


def test_role_that_no_endpoint_serves_is_exit_1_with_what_mends_it(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_ROLES", '{"poet": {}}')
    result = doctor(remote(upstream, roles=list(WEB_ROLES)))
    role = result.check("role")
    assert (result.code, role["level"], role["text"]) == (1, "failed", "no endpoint serves 'poet'")
    assert role["hint"] == "set endpoint in [roles.poet], or add 'poet' to the roles of one of [[endpoints]]"
    page = doctor(options=()).out
    assert "✗ role" in page
    assert "Every role" not in page


def test_role_of_yours_whose_endpoint_is_dead_is_silent(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_ROLES", '{"poet": {"endpoint": "dead"}}')
    result = doctor(remote(upstream), {**DEAD, "roles": []})
    assert (result.code, result.data["silent_roles"]) == (1, ["poet"])


# --- quotas


def test_quota_is_whole_before_anything_was_used_and_no_file_is_made(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    row = doctor(remote(upstream, quota={"tokens_per_hour": 30_000})).endpoint("up")
    [limit] = row["limits"]
    assert (limit["left"], limit["amount"], limit["source"]) == (30_000, 30_000, "configuration")
    assert list(home.iterdir()) == []


def test_quota_left_and_closure_are_those_of_all_processes(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    said = remote(upstream, quota={"tokens_per_hour": 30_000, "requests_per_minute": 20})
    [entry] = expand(Settings.model_validate({"endpoints": [said]}))
    quota = quota_of(entry, None, interactive_share=0.2)
    assert quota is not None

    async def use() -> None:
        store = open_quota_store(home=home, database_url=None)
        reservation = await store.reserve(quota, 500, priority=Priority.INTERACTIVE)
        assert isinstance(reservation, Reservation)
        await store.settle(quota, reservation, 400)
        await store.close()

    async def close() -> None:
        store = open_quota_store(home=home, database_url=None)
        await store.close_key(quota.key, seconds=3600, reason="402: no credit.")
        await store.close()

    asyncio.run(use())
    assert [limit["left"] for limit in doctor(said).endpoint("up")["limits"]] == [29_600, 19]
    page = doctor(said, options=()).out
    assert re.search(r"29,600 tokens left", page)
    assert re.search(r"of 30,000 an hour", page)
    asyncio.run(close())
    row = doctor(said).endpoint("up")
    assert (row["state"], row["can_answer"]) == ("closed", False)
    assert re.fullmatch(r"Closed until \S+ \S+ UTC\. 402: no credit\.", row["problem"])


def test_quota_that_cannot_be_read_is_exit_1_without_the_password(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_DATABASE_URL", "postgresql+psycopg://ada:hunter2@127.0.0.1:1/none")
    said = remote(upstream, quota={"tokens_per_hour": 1})
    result = doctor(said)
    assert result.code == 1
    assert result.endpoint("up")["quota_problem"]
    assert "hunter2" not in result.out + result.err
    assert "Mend what is marked with ✗." in doctor(said, options=()).out


# --- the embedded engine and the running server


def test_embedded_engine_starts_with_the_server(doctor: Doctor) -> None:
    result = doctor()
    row = result.endpoint("embedded")
    assert (result.code, row["state"], row["can_answer"], row["base_url"]) == (0, "not started", True, None)


def test_engine_that_is_not_installed_comes_with_its_command(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = doctor_checks.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "xllamacpp" else find_spec(name))
    result = doctor()
    assert (result.code, result.endpoint("embedded")["state"]) == (1, "not installed")
    assert "pip install 'everswarm[engine]'" in result.endpoint("embedded")["problem"]
    assert result.check("engine")["hint"] == "pip install 'everswarm[engine]'"


def test_model_that_the_engine_does_not_have_is_told(doctor: Doctor) -> None:
    row = doctor({"profile": "embedded", "model": "org/unknown"}).endpoint("embedded")
    assert "The engine has no 'org/unknown'. Set model to HuggingFaceTB/SmolLM2-135M-Instruct." in row["problem"]


def test_without_the_server_extra_the_machine_is_still_looked_at(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (doctor_command, doctor_checks):
        monkeypatch.setattr(module, "server_is_installed", lambda: False)
    result = doctor()
    assert (result.code, result.data["endpoints"]) == (1, [])
    assert result.check("server")["hint"] == "pip install 'everswarm[server]'"


def test_server_that_is_gone_does_not_count_as_running(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    announce(Settings(home=home), url="http://127.0.0.1:1")
    assert doctor(remote(upstream)).check("server process")["text"] == "does not run; it takes any free port"


# --- this machine


def test_file_that_the_settings_come_from_is_named(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, home: Path, upstream: FakeUpstream
) -> None:
    monkeypatch.delenv("EVERSWARM_CONFIG")
    assert doctor(remote(upstream)).check("settings")["text"] == f"there is no everswarm.toml in {home.parent}"
    (home.parent / "everswarm.toml").write_text("[worker]\nthreads = 1\n", encoding="utf-8")
    (home.parent / ".env").write_text("EVERSWARM_WORKER__THREADS=1\n", encoding="utf-8")
    found = doctor(remote(upstream)).check("settings")
    assert found["text"] == f"from {home.parent / 'everswarm.toml'} and {home.parent / '.env'}"


def test_variable_that_is_no_setting_is_named_and_no_error(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, home: Path, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_PROT", "secret-value")
    monkeypatch.setenv("EVERSWARM_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("EVERSWARM_WORKER__THREADS", "1")
    (home.parent / ".env").write_text("EVERSWARM_ENGINE_THREADS=2\n", encoding="utf-8")
    result = doctor(remote(upstream))
    told = [check["text"] for check in result.data["checks"] if check["name"] == "variable"]
    assert result.code == 0
    assert told == [
        "EVERSWARM_ENGINE_THREADS is no setting and is ignored (did you mean 'EVERSWARM_ENGINE__THREADS'?)",
        "EVERSWARM_PROT is no setting and is ignored (did you mean 'EVERSWARM_PORT'?)",
    ]
    assert "secret-value" not in result.out


def test_port_of_another_program_is_exit_1(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("EVERSWARM_PORT", str(taken.getsockname()[1]))
        result = doctor(remote(upstream))
    found = result.check("server process")
    assert (result.code, found["level"]) == (1, "failed")
    assert found["text"].startswith("Cannot listen on 127.0.0.1:")
    assert found["hint"] == "stop what uses it, or serve --port 0"


@pytest.mark.skipif(sys.platform == "win32", reason="modes are those of POSIX")
def test_home_that_others_can_read_is_exit_1(doctor: Doctor, home: Path, upstream: FakeUpstream) -> None:
    home.chmod(0o755)
    result = doctor(remote(upstream))
    assert (result.code, result.check("home")["hint"]) == (1, f"chmod 700 {home}")


def test_home_that_is_not_there_is_made_by_the_server_and_not_by_the_doctor(
    doctor: Doctor, home: Path, upstream: FakeUpstream
) -> None:
    home.rmdir()
    result = doctor(remote(upstream))
    assert (result.code, result.check("home")["text"]) == (0, f"{home}, made at the first start")
    assert not home.exists()


@pytest.mark.parametrize(("free_bytes", "level"), [(10**10, "ok"), (10**9, "note"), (10**7, "failed")])
def test_space_on_the_disk_is_judged(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, upstream: FakeUpstream, free_bytes: int, level: str
) -> None:
    usage = type(doctor_checks.shutil.disk_usage("/"))(2 * free_bytes, free_bytes, free_bytes)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    assert doctor(remote(upstream)).check("disk")["level"] == level


def test_model_that_is_not_here_yet_is_fetched_by_a_command(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, upstream: FakeUpstream
) -> None:
    monkeypatch.setenv("EVERSWARM_MODELS_DIR", str(tmp_path / "none"))
    found = doctor(remote(upstream)).check("model")
    assert (found["level"], found["hint"]) == ("note", "everswarm models pull")
    assert "is fetched when needed, 98.36 MB" in found["text"]


# --- serve


def test_serve_takes_its_table_from_the_command_line_and_needs_the_credentials(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path
) -> None:
    monkeypatch.chdir(home.parent)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for profiles, told in (
        (["embedded", "hf"], "'hf-primary' takes its credential from the variable HF_TOKEN, which is not set."),
        (["olama"], "--profile olama: there is no such profile (did you mean 'ollama'?). There are hf, ollama, vllm, "),
    ):
        options = [word for profile in profiles for word in ("--profile", profile)]
        monkeypatch.setattr(sys, "argv", ["everswarm", "serve", "--home", str(home), "--port", "0", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert told in " ".join(capfd.readouterr().err.split())
        assert list(home.iterdir()) == [], "refused before anything was made"
