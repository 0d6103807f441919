"""What a run keeps while strategies ask models through it: the budget, the trace, who may be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.skilled_models import FakeSwarm, ToldModel

from everswarm.errors import UnavailableError
from everswarm.llm.protocol import ChatModel
from everswarm.schemas.gateway import Priority
from everswarm.server.database import Database
from everswarm.server.gateway import Answered, Call
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.swarm.budget import Budget, OverBudgetError
from everswarm.server.swarm.requests import Wishes
from everswarm.server.swarm.run import Ask, Run, text_of
from everswarm.settings import RoleSettings

Plan = Callable[..., Run]
DOWN = UnavailableError("it is down")


@pytest.fixture
def plan(tmp_path: Path, database: Database) -> Plan:
    """Return a function that gives a run of `Hello`, with a budget, over models by role."""

    def planned(
        models: Mapping[str, ChatModel],
        *,
        roles: Mapping[str, RoleSettings] | None = None,
        quotas: Mapping[str, Quota] | None = None,
        streams: bool = False,
        **fields: Any,
    ) -> Run:
        swarm = FakeSwarm(tmp_path, database, models, roles=roles, quotas=quotas)
        call = Call({"messages": [{"role": "user", "content": "Hello"}], **fields}, (), user="ann")
        run = swarm.swarm._planner.plan(call, Wishes(), streams=streams)
        run.budget = Budget(5000)
        return run

    return planned


def says(text: str | Exception | None, name: str = "a") -> ToldModel:
    return ToldModel(lambda payload: text, model=name)


async def test_call_is_a_step_and_leaves_in_the_budget_what_it_did_not_use(plan: Plan) -> None:
    run = plan({"primary": says("Good morning to you")})
    answered = await run.ask(Ask("primary", "answer", "small talk"))
    (step,) = run.trace.steps
    assert text_of(answered) == "Good morning to you"
    assert (step.purpose, step.role, step.endpoint, step.model, step.why, step.outcome) == (
        "answer", "primary", "primary", "a", "small talk", "done",
    )  # fmt: skip
    assert (step.prompt_tokens, step.completion_tokens) == (1, 4)
    assert run.budget is not None
    assert run.budget.left_tokens == 5000 - 5


async def test_call_that_fails_costs_nothing_and_its_step_says_why(plan: Plan) -> None:
    run = plan({"primary": says(DOWN)})
    with pytest.raises(UnavailableError):
        await run.ask(Ask("primary", "answer"))
    assert run.trace.steps[0].outcome == "failed"
    assert "It is down" in run.trace.steps[0].detail
    assert run.budget is not None
    assert run.budget.left_tokens == 5000


async def test_call_that_is_cut_counts_as_all_that_it_might_have_used(plan: Plan) -> None:
    run = plan({"primary": says(None)}, max_tokens=100)
    task = asyncio.create_task(run.ask(Ask("primary", "answer")))
    while run.current is None:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert run.trace.steps[0].outcome == "cut"
    assert run.trace.steps[0].ended is not None
    assert run.budget is not None
    assert run.budget.left_tokens <= 4900


async def test_call_that_does_not_fit_is_skipped_and_nobody_asked(plan: Plan) -> None:
    model = says("Hello")
    run = plan({"primary": model})
    run.budget = Budget(10)
    with pytest.raises(OverBudgetError):
        await run.ask(Ask("primary", "answer"))
    assert run.trace.steps[0].outcome == "skipped"
    assert not model.calls


async def test_limit_of_the_budget_reaches_the_endpoint(plan: Plan) -> None:
    model = says("Hello")
    run = plan({"primary": model}, max_tokens=900, max_completion_tokens=800, logprobs=None)
    run.budget = Budget(500)
    await run.ask(Ask("primary", "answer"))
    assert model.calls[0]["max_tokens"] < 500
    assert "max_completion_tokens" not in model.calls[0]


async def test_single_call_is_passed_on_as_it_came(plan: Plan) -> None:
    model = says("Hello")
    fields = {"max_completion_tokens": 800, "n": 1, "lora": [{"id": 0}], "stop": ["x"]}
    run = plan({"primary": model}, **fields)
    run.budget = None
    await run.finish("primary")
    assert model.calls[0] == {"messages": [{"role": "user", "content": "Hello"}], **fields, "model": "a"}


async def test_answers_of_calls_side_by_side_keep_their_order_and_errors_their_place(plan: Plan) -> None:
    told = iter(["one", DOWN, "three"])
    run = plan({"primary": ToldModel(lambda payload: next(told), model="a")})
    came: list[tuple[int, str]] = []
    asked = await run.ask_all(
        [Ask("primary", "part")] * 3, came=lambda number, answered: came.append((number, text_of(answered)))
    )
    assert [text_of(one) if isinstance(one, Answered) else type(one) for one in asked] == [
        "one", UnavailableError, "three",
    ]  # fmt: skip
    assert sorted(came) == [(0, "one"), (2, "three")]


async def test_another_role_answers_while_there_is_no_answer_yet_and_none_afterwards(plan: Plan) -> None:
    run = plan({"primary": says(DOWN), "specialist": says("Hello from the specialist", "b")})
    answered = await run.ask(Ask("primary", "answer"))
    assert answered.role == "specialist"
    assert run.trace.steps[0].role == "specialist"
    run.best = answered
    with pytest.raises(UnavailableError):
        await run.ask(Ask("primary", "answer"))


async def test_calls_side_by_side_may_all_be_answered_by_another_role(plan: Plan) -> None:
    run = plan({"primary": says(DOWN), "specialist": says("Hello", "b")})
    asked = await run.ask_all([Ask("primary", "vote")] * 3, came=run.came)
    assert all(isinstance(one, Answered) for one in asked)


async def test_nobody_waits_for_a_quota_once_there_is_an_answer(plan: Plan) -> None:
    quota = Quota("a", (Limit("tokens", 300, 3600),))
    run = plan({"primary": says("Hello")}, quotas={"primary": quota}, max_tokens=200)
    run.call.wait_seconds = 3600
    run.best = await run.ask(Ask("primary", "answer"))
    await run.gateway._store.reserve(quota, 200, priority=Priority.INTERACTIVE)  # others
    with pytest.raises(UnavailableError, match="No endpoint can answer"):
        await run.ask(Ask("primary", "answer"))


async def test_last_call_streams_only_where_the_reader_wants_it(plan: Plan) -> None:
    whole = await plan({"primary": says("Good day")}).finish("primary")
    assert isinstance(whole, Answered)
    run = plan({"primary": says("Good day")}, streams=True)
    streamed = await run.finish("primary")
    assert not isinstance(streamed, Answered)
    assert run.trace.steps[0].ended is None
    chunks = [chunk async for together in streamed.chunks for chunk in together]
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert (run.trace.steps[0].outcome, run.trace.steps[0].completion_tokens) == ("done", 2)


async def test_stream_that_breaks_off_is_a_failed_step(plan: Plan) -> None:
    class Breaking(ToldModel):
        async def stream(self, payload, *, heard=None):
            async for together in super().stream(payload):
                yield together
                if together[0]["choices"][0]["delta"].get("content"):
                    raise UnavailableError("the line broke")

    run = plan({"primary": Breaking(lambda payload: "Good day", model="a")}, streams=True)
    streamed = await run.finish("primary")
    with pytest.raises(UnavailableError):
        [chunk async for chunk in streamed.chunks]
    assert (run.trace.steps[0].outcome, run.trace.steps[0].detail) == ("failed", "the line broke")


@pytest.mark.parametrize(
    ("escalates_to", "models", "other"),
    [
        ("specialist", {"primary": "a", "specialist": "b"}, "specialist"),
        ("specialist", {"primary": "a", "specialist": "a"}, None),
        ("specialist", {"primary": "a"}, None),
        (None, {"primary": "a", "specialist": "b"}, None),
    ],
)
def test_who_is_asked_after_a_role(
    plan: Plan, escalates_to: str | None, models: dict[str, str], other: str | None
) -> None:
    roles = {"primary": RoleSettings(escalates_to=escalates_to)}
    run = plan({role: says("x", name) for role, name in models.items()}, roles=roles)
    assert run.other_role("primary") == other
    assert run.other_role("nobody") is None


def test_size_is_that_of_the_role_with_the_longest_prompt(plan: Plan) -> None:
    roles = {"specialist": RoleSettings(system_prompt="You are very careful. " * 50)}
    run = plan({"primary": says("x"), "specialist": says("y", "b")}, roles=roles, max_tokens=77)
    assert run.size("primary", "specialist") == run.size("specialist")
    assert run.size("primary").prompt_tokens < 50
    assert run.size("specialist").prompt_tokens > 300
    assert run.size("primary").answer_tokens == 77


def test_what_no_model_said_names_no_role_and_costs_nothing(plan: Plan) -> None:
    run = plan({"primary": says("x")})
    said = run.say("42", model="calculator")
    assert (text_of(said), said.model, said.role, run.trace.role) == ("42", "calculator", None, None)
    assert said.response["usage"]["total_tokens"] == 0


@pytest.mark.parametrize(
    "response", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {"content": 3}}]}]
)
def test_answer_without_a_text_says_nothing(response: dict[str, Any]) -> None:
    assert text_of(Answered("a", "a", None, response)) == ""
