"""Where settings come from, which of them wins, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from everswarm.errors import ConfigurationError
from everswarm.settings import EMBEDDED_MODEL, EndpointSettings, load_settings

WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteToml:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setenv("EVERSWARM_CONFIG", str(path))
        return path

    return write


def refusal() -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_nothing_set_gives_the_embedded_profile_on_loopback_without_any_secret() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.engine.model) == ("127.0.0.1", 8000, EMBEDDED_MODEL)
    assert settings.endpoints == []


def test_state_lies_in_home_unless_moved_out(tmp_path: Path) -> None:
    inside = load_settings(home=tmp_path)
    assert inside.sqlalchemy_url == f"sqlite:///{tmp_path / 'everswarm.sqlite'}"
    assert inside.artifacts_root == str(tmp_path / "artifacts")
    moved = load_settings(home=tmp_path, database_url="postgresql://db/x", artifacts_url="s3://bucket")
    assert (moved.sqlalchemy_url, moved.artifacts_root) == ("postgresql://db/x", "s3://bucket")


def test_toml_of_this_folder_is_read_when_no_other_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSWARM_CONFIG")
    (tmp_path / "everswarm.toml").write_text("port = 9100\n", encoding="utf-8")
    assert load_settings().port == 9100


def test_argument_wins_over_variable_over_dotenv_over_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_toml: WriteToml
) -> None:
    write_toml("port = 1\nhost = 'toml'\nmax_body_bytes = 2000\n[worker]\nthreads = 3\nattempts = 7\n")
    (tmp_path / ".env").write_text("EVERSWARM_PORT=2\nEVERSWARM_HOST=dotenv\nOTHER_PROGRAM=x\n", encoding="utf-8")
    monkeypatch.setenv("EVERSWARM_PORT", "3")
    monkeypatch.setenv("EVERSWARM_WORKER__THREADS", "4")

    settings = load_settings(port=5)

    assert settings.port == 5
    assert load_settings().port == 3
    assert (settings.host, settings.max_body_bytes) == ("dotenv", 2000)
    assert (settings.worker.threads, settings.worker.attempts) == (4, 7)


def test_an_argument_that_is_none_leaves_the_setting_alone(write_toml: WriteToml) -> None:
    write_toml("port = 9100\n")
    assert load_settings(port=None).port == 9100


def test_endpoints_are_read_from_toml_and_from_a_variable(
    monkeypatch: pytest.MonkeyPatch, write_toml: WriteToml
) -> None:
    write_toml("[[endpoints]]\nname = 'a'\nbase_url = 'http://127.0.0.1:1/v1'\nmodel = 'm'\n")
    assert [endpoint.name for endpoint in load_settings().endpoints] == ["a"]
    monkeypatch.setenv("EVERSWARM_ENDPOINTS", '[{"name": "b", "base_url": "http://127.0.0.1:2/v1", "model": "m"}]')
    assert [endpoint.name for endpoint in load_settings().endpoints] == ["b"]


def test_broken_toml_names_the_file_and_the_line(write_toml: WriteToml) -> None:
    path = write_toml("port = 9000\nhost = \n")
    message = refusal()
    assert str(path) in message
    assert "line 2" in message


def test_misspelt_name_in_toml_is_refused_with_the_name_that_was_meant(write_toml: WriteToml) -> None:
    path = write_toml("prot = 9000\n")
    message = refusal()
    assert message.startswith(f"{path} has 'prot', which is not a setting. Did you mean 'port'? The settings are: ")
    assert "models_dir" in message


def test_misspelt_section_in_toml_is_refused(write_toml: WriteToml) -> None:
    write_toml("[engines]\nthreads = 2\n")
    assert "Did you mean 'engine'?" in refusal()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[engine]\nthread = 2\n", "engine.thread: is not a setting (did you mean 'threads'?)"),
        ("engine = {thread = 2}\n", "engine.thread: is not a setting (did you mean 'threads'?)"),
        ("[gateway]\nretry = 2\n", "gateway.retry: is not a setting (did you mean 'retries'?)"),
        ("[gateway.cache]\nsize = 2\n", "gateway.cache.size: is not a setting (did you mean 'size_mb'?)"),
        ("[worker]\nkey = 'x'\n", "worker.key: is not a setting; there are local, threads, lease_seconds, beat"),
    ],
)
def test_misspelt_name_in_a_section_is_refused(write_toml: WriteToml, text: str, told: str) -> None:
    write_toml(text)
    assert told in refusal()


@pytest.mark.parametrize("text", ["[endpoints]\nprofile = 'hf'\n", "[endpoints.hf]\nprofile = 'hf'\n"])
def test_one_bracket_around_endpoints_is_told(write_toml: WriteToml, text: str) -> None:
    write_toml(text)
    assert "endpoints: should be a list. Write [[endpoints]], with two brackets, above each endpoint" in refusal()


def test_misspelt_name_in_a_section_is_refused_in_a_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_WORKER__THREAD", "2")
    assert "worker.thread: is not a setting" in refusal()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("EVERSWARM_PORT", "70000", "port: Input should be less than or equal to 65535, not '70000'"),
        ("EVERSWARM_PORT", "many", "port: Input should be a valid integer"),
        ("EVERSWARM_ENGINE__THREADS", "0", "engine.threads: Input should be greater than or equal to 1, not '0'"),
        ("EVERSWARM_CYCLE__MINIMUM_EXAMPLES", "1", "cycle.minimum_examples"),
        ("EVERSWARM_CYCLE__SCHEDULE", "mondays", "cycle.schedule: should be a cron of five or six fields"),
        ("EVERSWARM_CYCLE__SCHEDULE", "0 25 * * 1", "cycle.schedule: should be a cron of five or six fields"),
        ("EVERSWARM_WORKER__BEAT_SECONDS", "120", "worker: beat_seconds (120) should be less than lease_seconds (120)"),
    ],
)
def test_wrong_value_is_named_with_its_limit(monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str) -> None:
    monkeypatch.setenv(name, value)
    message = refusal()
    assert told in message
    assert "everswarm.toml or as EVERSWARM_* variables" in message


def test_variable_that_should_hold_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_ENDPOINTS", "ollama")
    message = refusal()
    assert '"endpoints"' in message
    assert "JSON" in message


def test_all_wrong_values_are_told_at_once(write_toml: WriteToml) -> None:
    write_toml("port = -1\n[worker]\nthreads = 0\n")
    message = refusal()
    assert "port:" in message
    assert "worker.threads:" in message


def test_file_that_the_environment_names_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVERSWARM_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(ConfigurationError, match=r"EVERSWARM_CONFIG names .*gone\.toml, and there is no such file"):
        load_settings()


# --- the endpoint table

REMOTE = {"name": "a", "base_url": "http://127.0.0.1:1/v1", "model": "m"}


def refusal_of(monkeypatch: pytest.MonkeyPatch, *endpoints: object) -> str:
    monkeypatch.setenv("EVERSWARM_ENDPOINTS", json.dumps(endpoints))
    return refusal()


def test_profile_alone_is_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_ENDPOINTS", '[{"profile": "hf"}]')
    assert [endpoint.profile for endpoint in load_settings().endpoints] == ["hf"]


def test_table_of_the_arguments_replaces_that_of_the_file(write_toml: WriteToml) -> None:
    write_toml("[[endpoints]]\nprofile = 'ollama'\n")
    assert [one.profile for one in load_settings(endpoints=[{"profile": "vllm"}]).endpoints] == ["vllm"]


def test_slash_at_the_end_of_an_address_is_cut() -> None:
    assert EndpointSettings(**{**REMOTE, "base_url": "https://host/v1/"}).base_url == "https://host/v1"


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        (
            {"profile": "olama"},
            "endpoints.'olama'.profile: should be one of hf, ollama, vllm, embedded (did you mean 'o",
        ),
        ({"profile": 3}, "endpoints.'3'.profile: Input should be a valid string"),
        (
            {**REMOTE, "roles": ["primry"]},
            "endpoints.'a'.roles: 'primry' is no role; there are primary, coordinator, spec",
        ),
        (
            {**REMOTE, "base_url": "ftp://x"},
            "endpoints.'a'.base_url: should be an http:// or https:// address, such as ",
        ),
        ({**REMOTE, "base_url": "http://[::1"}, "endpoints.'a'.base_url: should be an http:// or https:// address"),
        ({**REMOTE, "base_url": "http://host:99999/v1"}, "endpoints.'a'.base_url: should be an http:// or https://"),
        (
            {**REMOTE, "quota": {"tokens_per_hour": 0}},
            "endpoints.'a'.quota.tokens_per_hour: Input should be greater than",
        ),
        (
            {**REMOTE, "quota": {"tokens_an_hour": 1}},
            "endpoints.'a'.quota.tokens_an_hour: is not a setting (did you mean 'tokens_per_hour'?)",
        ),
        ({**REMOTE, "wieght": 1}, "endpoints.'a'.wieght: is not a setting (did you mean 'weight'?)"),
        ({"wieght": 1, "profile": "hf"}, "endpoints.'hf'.wieght: is not a setting (did you mean 'weight'?)"),
        ({**REMOTE, "zzz": 1}, "endpoints.'a'.zzz: is not a setting; there are profile, name, base_url, model, roles,"),
        ({**REMOTE, "weight": -1}, "endpoints.'a'.weight: Input should be greater than or equal to 0"),
        ({**REMOTE, "weight": "nan"}, "endpoints.'a'.weight: Input should be a finite number"),
        (
            {**REMOTE, "api_key": "secret"},
            "endpoints.'a'.api_key: is not a setting; use api_key_env with the NAME of the variable that holds",
        ),
        ({"name": "a"}, "endpoints.'a': base_url and model should be set, or a profile that knows them: hf, ollama"),
        ({}, "endpoints.0: name and base_url and model should be set"),
        (
            {"profile": "embedded", "base_url": "http://x/v1"},
            "endpoints.'embedded': base_url is not for the embedded en",
        ),
        ("ollama", "endpoints.0: Input should be a valid dictionary"),
    ],
)
def test_wrong_endpoint_is_named_with_its_field(monkeypatch: pytest.MonkeyPatch, endpoint: object, told: str) -> None:
    assert told in refusal_of(monkeypatch, endpoint)


def test_two_endpoints_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "endpoints: two have the name 'a'; give each its own" in refusal_of(monkeypatch, REMOTE, REMOTE)


@pytest.mark.parametrize(
    "endpoint",
    [
        {**REMOTE, "base_url": "https://ada:hunter2@host/v1"},
        {**REMOTE, "base_url": "ada:hunter2@host"},
        {**REMOTE, "base_url": "https://host/v1?key=hunter2"},
        {**REMOTE, "api_key_env": "hf_hunter2"},
        {**REMOTE, "api_key_env": "sk-hunter2"},
        {**REMOTE, "api_key": "hunter2"},
    ],
)
def test_credential_in_the_settings_is_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, endpoint: object
) -> None:
    assert "hunter2" not in refusal_of(monkeypatch, endpoint)


# --- roles and tool servers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[roles.everswarm]\n", "roles: 'everswarm' cannot name a role: it is the model name that leaves the choice"),
        ("[roles.Poet]\n", "roles: 'Poet' cannot name a role: it has 'P', and only small letters, digits, - and _"),
        ("[roles.1st]\n", "roles: '1st' cannot name a role: it begins with '1', and a small letter should be first"),
        (f"[roles.{'a' * 41}]\n", "cannot name a role: it has 41 characters, and 40 are the most"),
        ("[roles.poet]\nescalates_to = 'poet'\n", "roles: 'poet' escalates to itself; name another role in"),
        ("[tools.clock]\nurl = 'http://x'\n", "tools: 'clock' cannot name a tool server: a built-in tool has that"),
        ("[tools.'my files']\nurl = 'http://x'\n", "tools: 'my files' cannot name a tool server: it has ' ', and only"),
        ("[tools.a]\ncommand = ['x']\nurl = 'http://x'\n", "tools.a: has both command and url; keep the one"),
        ("[tools.a]\n", "tools.a: has neither command, such as"),
    ],
)
def test_wrong_role_or_tool_server_is_told_with_the_rule(write_toml: WriteToml, text: str, told: str) -> None:
    write_toml(text)
    assert told in refusal()


@pytest.mark.parametrize(
    ("allowed", "told"),
    [
        (
            "calculater",
            "'calculater' is no tool; there are calculator, clock, documents, files (did you mean 'calculator'?",
        ),
        ("fils", "(did you mean 'files'?). One of your own needs a [tools.NAME], and is allowed as NAME or NAME.tool"),
        (
            "fils.read",
            "'fils.read' is no tool; there are calculator, clock, documents, files (did you mean 'files.read'?)",
        ),
        ("files.", "'files.' is no tool"),
        ("clock.now", "'clock.now' is no tool"),
        ("*", "'*' is no tool"),
    ],
)
def test_tool_that_is_not_there_is_refused_with_the_one_that_was_meant(
    write_toml: WriteToml, allowed: str, told: str
) -> None:
    write_toml(f"[tools.files]\ncommand = ['x']\n[roles.primary]\ntools = ['{allowed}']\n")
    message = refusal()
    assert "roles.primary.tools: " in message
    assert told in message


def test_tools_that_are_built_in_or_of_a_server_are_allowed(write_toml: WriteToml) -> None:
    tools = ["clock", "files", "files.read.all"]
    write_toml(f"[tools.files]\ncommand = ['x']\n[roles.primary]\ntools = {tools}\n")
    assert load_settings().roles["primary"].tools == tools


def test_two_roles_may_escalate_to_each_other(write_toml: WriteToml) -> None:
    write_toml("[roles.primary]\nescalates_to = 'poet'\n[roles.poet]\nescalates_to = 'primary'\n")
    assert load_settings().roles["poet"].escalates_to == "primary"
