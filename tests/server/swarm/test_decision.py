"""The coordinator decides who answers where the rules are unsure; whatever it says, an answer comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.skilled_models import FakeSwarm, ToldModel

from everswarm.errors import BadRequestError, UnavailableError
from everswarm.llm.protocol import Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.database import Database
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.swarm import decision
from everswarm.server.swarm.decision import MOST_CALLS, read_decision
from everswarm.settings import RoleSettings, SwarmSettings

UNSURE = "Расскажи мне, пожалуйста, что-нибудь интересное о жизни в большом городе"  # the rules cannot read it
ROLES = ("primary", "coordinator", "specialist")

Told = str | dict[str, Any] | Exception | None
Decided = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, database: Database) -> Callable[..., tuple[FakeSwarm, ToldModel]]:
    """Return a swarm whose coordinator says `said` one after another, and the model behind the coordinator."""

    def open_(*said: Told, **options: Any) -> tuple[FakeSwarm, ToldModel]:
        left = list(said)
        coordinator = ToldModel(lambda payload: left.pop(0) if len(left) > 1 else left[0], model="c")
        models = {
            "primary": ToldModel(lambda payload: "of the primary", model="a"),
            "coordinator": coordinator,
            "specialist": ToldModel(lambda payload: "of the specialist", model="b"),
        }
        return FakeSwarm(tmp_path, database, models, **options), coordinator

    return open_


@pytest.mark.parametrize(
    "said",
    [
        '{"role": "specialist"}',
        'Sure! {"role": "specialist"} is best.',
        '```json\n{"role": "specialist"}\n```',
        '{"role":"specialist","why":"it knows cities"}',
    ],
)
async def test_coordinators_choice_answers(opened: Decided, said: str) -> None:
    swarm, coordinator = opened(said)
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the specialist"
    assert asked.trace.role == "specialist"
    assert asked.trace.reason.endswith("the coordinator chose the specialist")
    assert [(step.purpose, step.role) for step in asked.trace.steps] == [
        ("decide", "coordinator"),
        ("answer", "specialist"),
    ]
    assert len(coordinator.calls) == 1
    schema = coordinator.calls[0]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]["role"]["enum"]) == set(ROLES)


@pytest.mark.parametrize(
    "said", ["", "the specialist", '{"role": "boss"}', '{"role": 7}', "{" * 9999, '{"role": ["a"]}']
)
async def test_garbage_is_repaired_once_and_then_the_rules_decide(opened: Decided, said: str) -> None:
    swarm, coordinator = opened(said)
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the primary"
    assert len(coordinator.calls) == 2
    assert "cannot be used" in coordinator.calls[1]["messages"][-1]["content"]
    assert asked.trace.notes == ["the coordinator gave no decision that can be used, so the rules decided"]
    assert asked.trace.steps[0].detail.startswith("unusable: ")


async def test_repaired_decision_counts(opened: Decided) -> None:
    swarm, _ = opened("the specialist, I would say", '{"role": "specialist"}')
    assert (await swarm.ask(UNSURE)).text == "of the specialist"


async def test_coordinator_may_choose_itself_and_is_not_asked_who_answers_again(opened: Decided) -> None:
    swarm, coordinator = opened('{"role": "coordinator"}', "of the coordinator")
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the coordinator"
    assert [step.purpose for step in asked.trace.steps] == ["decide", "answer"]
    assert len(coordinator.calls) == 2


async def test_endpoint_without_schemas_is_asked_without_one(opened: Decided) -> None:
    def tell(payload: Payload) -> Told:
        return BadRequestError("response_format") if "response_format" in payload else '{"role": "specialist"}'

    swarm, coordinator = opened("")
    coordinator._tell = tell
    assert (await swarm.ask(UNSURE)).text == "of the specialist"
    assert len(coordinator.calls) == 2


async def test_no_coordinator_is_asked_more_than_three_times(opened: Decided) -> None:
    swarm, coordinator = opened("")
    coordinator._tell = lambda payload: BadRequestError("no") if "response_format" in payload else "garbage"
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the primary"
    assert len(coordinator.calls) == MOST_CALLS == 3


@pytest.mark.parametrize("error", [UnavailableError("it is down"), BadRequestError("I take nothing")])
async def test_rules_decide_where_the_coordinator_cannot_be_asked(opened: Decided, error: Exception) -> None:
    swarm, _ = opened(error)
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the primary"
    assert asked.trace.notes[0].startswith("the coordinator could not be asked: ")


async def test_coordinator_that_hangs_is_not_waited_for(opened: Decided, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "SECONDS", 0.05)
    swarm, _ = opened(None)
    asked = await swarm.ask(UNSURE)
    assert asked.text == "of the primary"
    assert asked.trace.notes == ["the coordinator did not decide within 0 s, so the rules decided"]
    assert asked.trace.steps[0].outcome == "cut"


async def test_coordinator_is_not_asked_where_the_rules_are_sure_or_it_may_not_be(opened: Decided) -> None:
    swarm, coordinator = opened('{"role": "specialist"}')
    assert (await swarm.ask("Hello, how are you?")).text == "of the primary"
    assert (await swarm.ask(UNSURE, tools=[{"type": "function", "function": {"name": "f"}}])).text == "of the primary"
    swarm, coordinator = opened('{"role": "specialist"}', swarm=SwarmSettings(ask_coordinator=False))
    assert (await swarm.ask(UNSURE)).text == "of the primary"
    assert not coordinator.calls


async def test_coordinator_is_not_asked_where_half_of_the_quota_is_gone(opened: Decided) -> None:
    quota = Quota("c", (Limit("tokens", 10_000, 3600),))
    swarm, coordinator = opened('{"role": "specialist"}', quotas={"coordinator": quota})
    await swarm.gateway._store.reserve(quota, 6000, priority=Priority.INTERACTIVE)
    for endpoint in swarm.gateway._endpoints:
        await endpoint.look_at_quota(swarm.gateway._store)
    assert (await swarm.ask(UNSURE)).text == "of the primary"
    assert not coordinator.calls


async def test_nobody_is_asked_where_there_is_no_coordinator(tmp_path: Path, database: Database) -> None:
    models = {role: ToldModel(lambda payload, role=role: role, model=role) for role in ("primary", "specialist")}
    asked = await FakeSwarm(tmp_path, database, models).ask(UNSURE)
    assert asked.text == "primary"
    assert (asked.trace.model_calls, asked.trace.notes) == (1, [])


async def test_question_is_data_and_the_roles_own_prompt_stays_out(opened: Decided) -> None:
    roles = {"coordinator": RoleSettings(system_prompt="word " * 3000)}
    swarm, coordinator = opened('{"role": "specialist"}', roles=roles)
    await swarm.ask(UNSURE, stop=["{"], response_format={"type": "json_object"})
    call = coordinator.calls[0]
    assert set(call) == {"messages", "response_format", "temperature", "max_tokens", "model"}
    assert call["response_format"]["type"] == "json_schema"
    assert [message["role"] for message in call["messages"]] == ["system", "user"]
    assert "word word" not in str(call)
    assert UNSURE not in call["messages"][0]["content"]


@given(st.text(max_size=200))
def test_no_text_makes_a_role_that_is_not_there(text: str) -> None:
    assert read_decision(text, ROLES) in (None, *ROLES)
    assert read_decision(f'{{"role": "{text}"}}', ROLES) in (None, *ROLES)
