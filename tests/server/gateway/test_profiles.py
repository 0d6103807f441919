"""What the endpoint table is, once its profiles have filled the gaps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.errors import ConfigurationError
from everswarm.server.gateway.profiles import REMOTE_PROFILES, expand
from everswarm.server.gateway.table import check_table, open_endpoints
from everswarm.settings import EMBEDDED_MODEL, PROFILES, WEB_ROLES, EndpointSettings, EngineSettings, Settings


def table(*endpoints: dict[str, object], **settings: object) -> list[EndpointSettings]:
    return expand(Settings.model_validate({"endpoints": list(endpoints), **settings}))


def shown(entries: list[EndpointSettings]) -> list[tuple[str, str, list[str]]]:
    return [(entry.name, entry.model, entry.roles) for entry in entries]


def test_hf_gives_one_endpoint_for_each_web_role() -> None:
    entries = table({"profile": "hf"})
    assert shown(entries) == [
        ("hf-primary", "mistralai/Mistral-7B-Instruct-v0.3", ["primary"]),
        ("hf-coordinator", "Qwen/Qwen2.5-7B-Instruct", ["coordinator"]),
        ("hf-specialist", "meta-llama/Llama-3.1-8B-Instruct", ["specialist"]),
    ]
    assert {(entry.base_url, entry.api_key_env) for entry in entries} == {
        ("https://router.huggingface.co/v1", "HF_TOKEN")
    }


def test_ollama_gives_three_models_of_this_machine_without_a_credential() -> None:
    entries = table({"profile": "ollama"})
    assert [entry.name for entry in entries] == ["ollama-primary", "ollama-coordinator", "ollama-specialist"]
    assert {(entry.base_url, entry.api_key_env) for entry in entries} == {("http://127.0.0.1:11434/v1", None)}


def test_vllm_is_one_endpoint_that_takes_the_model_of_its_server() -> None:
    assert shown(table({"profile": "vllm"})) == [("vllm", "", list(WEB_ROLES))]


def test_model_makes_one_endpoint_of_a_profile() -> None:
    assert shown(table({"profile": "hf", "model": "org/m"})) == [("hf", "org/m", list(WEB_ROLES))]


def test_only_the_roles_that_are_named_get_an_endpoint() -> None:
    assert [entry.roles for entry in table({"profile": "hf", "roles": ["specialist"]})] == [["specialist"]]


def test_name_is_a_prefix_for_several_roles_and_the_name_for_one() -> None:
    assert [entry.name for entry in table({"profile": "hf", "name": "router", "roles": ["primary", "specialist"]})] == [
        "router-primary",
        "router-specialist",
    ]
    assert [entry.name for entry in table({"profile": "hf", "name": "router", "roles": ["primary"]})] == ["router"]


def test_what_an_entry_says_wins_over_its_profile() -> None:
    said = {"base_url": "http://box:1/v1", "api_key_env": "OTHER", "weight": 3.0, "quota": {"tokens_per_hour": 5}}
    for entry in table({"profile": "hf", **said}):
        assert (entry.base_url, entry.api_key_env, entry.weight) == ("http://box:1/v1", "OTHER", 3.0)
        assert entry.quota is not None
        assert entry.quota.tokens_per_hour == 5


@given(
    profile=st.sampled_from(PROFILES),
    said=st.fixed_dictionaries(
        {},
        optional={
            "name": st.from_regex(r"[a-z]{1,8}", fullmatch=True),
            "model": st.sampled_from(["org/m", "x:7b"]),
            "roles": st.lists(st.sampled_from(WEB_ROLES), min_size=1, unique=True),
            "weight": st.floats(0, 9),
            "timeout_seconds": st.floats(1, 9),
            "answer_tokens": st.integers(1, 9),
        },
    ),
)
def test_expansion_covers_the_roles_once_and_keeps_all_that_is_said(profile: str, said: dict[str, object]) -> None:
    entries = table({"profile": profile, **said})
    assert sorted(role for entry in entries for role in entry.roles) == sorted(said.get("roles", WEB_ROLES))
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.name
        assert entry.base_url or profile == "embedded"
        for name in said.keys() - {"name", "roles"}:
            assert getattr(entry, name) == said[name]


def test_embedded_stands_beside_others_in_declared_order() -> None:
    entries = table({"profile": "hf", "roles": ["primary"]}, {"profile": "embedded"})
    assert shown(entries)[1] == ("embedded", EMBEDDED_MODEL, list(WEB_ROLES))


def test_embedded_entry_takes_the_rest_from_the_engine() -> None:
    [entry] = table({"profile": "embedded"}, engine={"answer_tokens": 77})
    assert (entry.answer_tokens, entry.timeout_seconds) == (77, 600.0)
    [entry] = table({"profile": "embedded", "answer_tokens": 5, "timeout_seconds": 6}, engine={"answer_tokens": 77})
    assert (entry.answer_tokens, entry.timeout_seconds) == (5, 6.0)


def test_nothing_configured_is_the_embedded_engine_alone() -> None:
    assert [entry.profile for entry in expand(Settings())] == ["embedded"]
    assert expand(Settings(engine=EngineSettings(enabled=False))) == []


@pytest.mark.parametrize(
    ("endpoints", "told"),
    [
        ([{"profile": "hf"}, {"profile": "hf"}], "Two endpoints have the name 'hf-primary'"),
        ([{"profile": "embedded"}, {"profile": "embedded", "name": "b"}], "'embedded' and 'b' are both the embedded"),
        ([{"profile": "hf", "roles": []}], "The endpoint 'hf' has no roles, so its profile 'hf' gives it no model"),
    ],
)
def test_table_that_cannot_be_says_what_to_change(endpoints: list[dict[str, object]], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        table(*endpoints)


LOCAL = {"name": "a", "base_url": "http://127.0.0.1:1/v1"}


def test_model_named_like_a_role_that_its_endpoint_lacks_is_refused() -> None:
    told = (
        "The model of the endpoint 'a' is named 'primary' like a role that the endpoint does not serve, and a chat for "
        "that role would go there. Rename the model on its server, or add 'primary' to the endpoint's roles."
    )
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        table({**LOCAL, "model": "primary", "roles": ["specialist"]}, {"profile": "hf"})
    with pytest.raises(ConfigurationError, match="is named 'poet' like a role"):
        table(
            {**LOCAL, "model": "poet", "roles": []}, {"profile": "embedded"}, roles={"poet": {"endpoint": "embedded"}}
        )


def test_model_named_like_a_role_that_its_endpoint_has_is_fine() -> None:
    assert shown(table({**LOCAL, "model": "primary", "roles": ["primary"]})) == [("a", "primary", ["primary"])]
    bound = table({**LOCAL, "model": "poet", "roles": []}, roles={"poet": {"endpoint": "a"}})
    assert shown(bound) == [("a", "poet", ["poet"])]


def test_model_named_everswarm_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a chat for 'everswarm' leaves the choice to the swarm\. Rename"):
        table({**LOCAL, "model": "everswarm"})


def test_disabled_engine_is_not_started_by_the_table() -> None:
    with pytest.raises(ConfigurationError, match=r"`enabled = false` in \[engine\] forbids it"):
        table({"profile": "embedded"}, engine={"enabled": False})


def test_table_opens_as_endpoints_with_all_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    prices = {"price_per_million_prompt_tokens": 1.0, "price_per_million_answer_tokens": 2.0}
    settings = Settings.model_validate(
        {
            "endpoints": [
                {"profile": "hf", "roles": ["primary"], "weight": 2, "answer_tokens": 9, **prices},
                {"profile": "embedded", "name": "own", "roles": ["specialist"]},
            ],
            "gateway": {"interactive_share": 0.5},
        }
    )
    router, own = open_endpoints(settings)
    assert (router.name, router.weight, router.answer_tokens, router.prices) == ("hf-primary", 2.0, 9, (1.0, 2.0))
    assert router.price_usd(1_000_000, 500_000) == 2.0
    assert router.quota is not None
    assert router.quota.interactive_share == 0.5
    assert (own.name, own.roles, own.model, own.quota) == ("own", ("specialist",), EMBEDDED_MODEL, None)


def test_check_of_the_table_misses_a_credential_without_opening_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    settings = Settings.model_validate({"endpoints": [{"profile": "hf"}]})
    with pytest.raises(ConfigurationError, match="'hf-primary' takes its credential from the variable HF_TOKEN, which"):
        check_table(settings)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    check_table(settings)


def test_every_profile_that_can_be_written_is_known() -> None:
    assert set(PROFILES) == {*REMOTE_PROFILES, "embedded"}
