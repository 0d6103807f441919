"""The paths through each strategy, on models that say what a test tells them; also those where something fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.skilled_models import FakeSwarm, ToldModel

from everswarm.errors import BadRequestError, QuotaSpentError, UnavailableError
from everswarm.llm.protocol import ChatModel, Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.database import Database
from everswarm.server.gateway import Call
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import Chat, Wishes
from everswarm.server.swarm.strategies import answer
from everswarm.server.swarm.strategies.split import MOST_PARTS, listed_parts, read_parts
from everswarm.server.swarm.strategies.tools import CALLS_A_STEP
from everswarm.server.swarm.strategies.writing import with_appendix
from everswarm.server.swarm.tools.tool import Tool, ToolFailedError
from everswarm.server.swarm.tools.toolbox import Toolbox
from everswarm.server.swarm.trace import Traced
from everswarm.settings import RoleSettings, SwarmSettings

PROBLEM = "Anna has 3 boxes with 4 pens in each and loses 2 of the pens. How many pens has she now?"
RIGHT = "Anna has 3 * 4 = 12 pens, and 12 - 2 = 10 remain. The answer is 10."
WRONG = "Anna has 3 * 4 = 13 pens, and 13 - 2 = 11 remain. The answer is 11."
CONVERSATION = [  # long enough for a check to be cheaper than a second answer
    {"role": "user", "content": "I have some questions. " + "They are for a lesson at school. " * 10},
    {"role": "assistant", "content": "With pleasure. " + "Tell me what you want to know. " * 10},
    {"role": "user", "content": PROBLEM},
]
ROLES = {"specialist": RoleSettings(good_at=[]), "coordinator": RoleSettings(good_at=[])}
DOWN = UnavailableError("it is down")
SPENT = QuotaSpentError("spent", retry_after_seconds=3600)

Told = str | dict[str, Any] | Exception | None
Open = Callable[..., FakeSwarm]


@pytest.fixture
def open_swarm(tmp_path: Path, database: Database) -> Open:
    def opened(
        models: Mapping[str, ChatModel], *, roles: Mapping[str, RoleSettings] = ROLES, **options: Any
    ) -> FakeSwarm:
        return FakeSwarm(tmp_path, database, models, roles=roles, **options)

    return opened


def model(name: str, *said: Told) -> ToldModel:
    """Return a model that says one after another, and the last again and again."""
    left = list(said)
    return ToldModel(lambda payload: left.pop(0) if len(left) > 1 else left[0], model=name)


def steps(trace: Traced, *, models_only: bool = True) -> list[tuple[str, str | None, str]]:
    return [(step.purpose, step.role, step.outcome) for step in trace.steps if step.role is not None or not models_only]


def last_said(payload: Payload) -> str:
    return str(payload["messages"][-1]["content"])


def is_check(payload: Payload) -> bool:
    return "yes or no" in last_said(payload)


async def reservations(swarm: FakeSwarm) -> tuple[int, int]:
    """Return the tokens that are held, and those that are used, when all is settled."""
    for _ in range(20):
        await asyncio.sleep(0)
    await swarm.gateway._store.beat()
    limits = [limit for view in await swarm.gateway.quotas() for limit in view.limits if limit.unit == "tokens"]
    return sum(limit.held for limit in limits), sum(limit.used for limit in limits)


# --- cascade


async def test_cascade_gives_the_first_answer_where_the_second_model_says_yes(open_swarm: Open) -> None:
    second = model("b", "Yes.")
    asked = await open_swarm({"primary": model("a", RIGHT), "specialist": second}).ask(CONVERSATION, "cascade")
    assert asked.text == RIGHT
    assert steps(asked.trace) == [("answer", "primary", "done"), ("check", "specialist", "done")]
    assert asked.trace.role == "primary"
    assert second.calls[0]["temperature"] == 0
    assert second.calls[0]["max_tokens"] == 8


async def test_cascade_asks_the_second_model_where_it_says_no_and_does_not_show_the_first_answer(
    open_swarm: Open,
) -> None:
    second = model("b", "No", "It is 10.")
    asked = await open_swarm({"primary": model("a", RIGHT), "specialist": second}).ask(CONVERSATION, "cascade")
    assert asked.text == "It is 10."
    assert [step[0] for step in steps(asked.trace)] == ["answer", "check", "escalation"]
    assert asked.trace.role == "specialist"
    assert second.calls[1]["messages"] == CONVERSATION


async def test_cascade_asks_for_a_second_answer_where_a_check_would_cost_nearly_as_much(open_swarm: Open) -> None:
    second = model("b", "It is 10.")
    asked = await open_swarm({"primary": model("a", RIGHT), "specialist": second}).ask(PROBLEM, "cascade")
    assert asked.text == "It is 10."
    assert [step[0] for step in steps(asked.trace)] == ["answer", "escalation"]
    assert asked.trace.steps[-1].why == "cost: a check would cost nearly as much as another answer"


async def test_cascade_asks_no_model_for_what_a_free_check_refutes(open_swarm: Open) -> None:
    second = model("b", RIGHT)
    asked = await open_swarm({"primary": model("a", WRONG), "specialist": second}).ask(PROBLEM, "cascade")
    assert asked.text == RIGHT
    assert steps(asked.trace, models_only=False) == [
        ("answer", "primary", "done"),
        ("check", None, "failed"),
        ("escalation", "specialist", "done"),
    ]
    assert len(second.calls) == 1


@pytest.mark.parametrize("said", ["It depends.", "", DOWN, BadRequestError("no"), SPENT])
async def test_cascade_keeps_the_first_answer_where_the_check_says_nothing(open_swarm: Open, said: Told) -> None:
    swarm = open_swarm({"primary": model("a", RIGHT), "specialist": model("b", said)})
    asked = await swarm.ask(CONVERSATION, "cascade")
    assert asked.text == RIGHT
    assert [step[0] for step in steps(asked.trace)] == ["answer", "check"]


async def test_cascade_without_another_model_answers_alone_and_says_so(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": model("same", WRONG), "specialist": model("same", RIGHT)})
    asked = await swarm.ask(PROBLEM, "cascade")
    assert asked.text == WRONG
    assert asked.trace.notes == ["nobody of another model is there to ask"]


@pytest.mark.parametrize("error", [DOWN, SPENT, BadRequestError("the prompt is longer than my context")])
async def test_cascade_gives_the_first_answer_where_the_second_model_fails(open_swarm: Open, error: Exception) -> None:
    asked = await open_swarm({"primary": model("a", WRONG), "specialist": model("b", error)}).ask(PROBLEM, "cascade")
    assert asked.text == WRONG
    assert asked.trace.role == "primary"
    assert "this is the best answer so far" in asked.trace.notes[0]
    assert steps(asked.trace)[-1] == ("escalation", "specialist", "failed")


async def test_cascade_gives_the_first_answer_where_the_quota_is_spent_in_the_middle(open_swarm: Open) -> None:
    limit = Limit("tokens", 4000, 3600)
    quotas = {"specialist": Quota("b", (limit,))}
    swarm = open_swarm({"primary": model("a", WRONG), "specialist": model("b", RIGHT)}, quotas=quotas)
    others = await swarm.gateway._store.reserve(quotas["specialist"], 3900, priority=Priority.INTERACTIVE)
    assert others is not None
    swarm.gateway.shortage = never_short  # type: ignore[method-assign]
    asked = await swarm.ask(PROBLEM, "cascade")
    assert asked.text == WRONG
    assert "this is the best answer so far" in asked.trace.notes[0]


async def never_short(*_all: object, **_more: object) -> None:
    """What the gateway says when another spends the quota a moment later."""


async def test_cascade_does_not_have_a_model_check_itself_when_it_answered_for_another(open_swarm: Open) -> None:
    swarm = open_swarm({"primary": model("a", DOWN), "specialist": model("b", RIGHT), "coordinator": model("c", "Yes")})
    asked = await swarm.ask(CONVERSATION, "cascade")
    assert asked.text == RIGHT
    assert asked.trace.role == "specialist"
    assert steps(asked.trace)[1] == ("check", "coordinator", "done")


async def test_check_is_asked_without_what_the_request_wants_of_its_answer(open_swarm: Open) -> None:
    roles = {**ROLES, "specialist": RoleSettings(good_at=[], system_prompt="Speak like a pirate.", top_p=0.5)}
    second = model("b", "Yes")
    swarm = open_swarm({"primary": model("a", '{"pens": 10}'), "specialist": second}, roles=roles)
    await swarm.ask(CONVERSATION, "cascade", response_format={"type": "json_object"}, stop=["e"], logit_bias={"1": 5})
    assert set(second.calls[0]) == {"messages", "temperature", "max_tokens", "model"}
    assert "pirate" not in str(second.calls[0])


async def test_escalation_is_asked_as_the_request_and_the_role_say(open_swarm: Open) -> None:
    roles = {**ROLES, "specialist": RoleSettings(good_at=[], system_prompt="Be exact.", temperature=0.3)}
    second = model("b", RIGHT)
    swarm = open_swarm({"primary": model("a", WRONG), "specialist": second}, roles=roles)
    await swarm.ask(PROBLEM, "cascade", stop=["###"], max_completion_tokens=99)
    (call,) = second.calls
    assert call["messages"][0] == {"role": "system", "content": "Be exact."}
    assert (call["stop"], call["temperature"], call["max_tokens"]) == (["###"], 0.3, 99)
    assert "max_completion_tokens" not in call


async def test_check_leaves_room_for_the_second_answer(open_swarm: Open) -> None:
    first = "数" * 3000 + "?"  # a check of it costs more than was set aside for one
    second = ToldModel(lambda payload: "No" if is_check(payload) else RIGHT, model="b")
    swarm = open_swarm({"primary": Spendthrift(first), "specialist": second})
    await swarm.ask("What do you think of this, in one long story", "cascade", max_tokens=900)
    assert all(call["max_tokens"] == 900 for call in second.calls if not is_check(call))


class Spendthrift(ToldModel):
    """A fake whose answer uses all that it may."""

    def __init__(self, text: str) -> None:
        super().__init__(lambda payload: text, model="spendthrift")

    async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
        response = await super().chat(payload, heard=heard)
        response["usage"] = {"prompt_tokens": 30, "completion_tokens": payload["max_tokens"]}
        return response


# --- vote


async def test_vote_stops_when_two_agree(open_swarm: Open) -> None:
    voter = model("a", RIGHT, "It is ten, so the answer is 10")
    asked = await open_swarm({"primary": voter}).ask(PROBLEM, "vote")
    assert asked.text == RIGHT
    assert len(voter.calls) == 2
    assert asked.trace.steps[-1].detail == "two of 2 say 10"
    assert [call.get("temperature") for call in voter.calls] == [None, 0.7]
    assert asked.tokens == asked.trace.prompt_tokens + asked.trace.completion_tokens > 0
    assert asked.answered.response["usage"]["total_tokens"] == asked.tokens


async def test_third_sample_breaks_the_tie(open_swarm: Open) -> None:
    voter = model("a", "The answer is 12.", RIGHT, "The answer is 10.")
    asked = await open_swarm({"primary": voter}).ask(PROBLEM, "vote")
    assert asked.text == RIGHT
    assert len(voter.calls) == 3


async def test_where_none_agree_the_first_that_free_checks_do_not_refute_is_given(open_swarm: Open) -> None:
    asked = await open_swarm({"primary": model("a", WRONG, "The answer is 12.", "The answer is 13.")}).ask(
        PROBLEM, "vote"
    )
    assert asked.text == "The answer is 12."
    assert "no two agree" in asked.trace.steps[-1].detail


@pytest.mark.parametrize("failing", [0, 1])
async def test_a_sample_that_fails_is_left_out(open_swarm: Open, failing: int) -> None:
    said: list[Told] = [RIGHT, RIGHT]
    said[failing] = DOWN
    asked = await open_swarm({"primary": model("a", *said, "The answer is 10.")}).ask(PROBLEM, "vote")
    assert asked.text == RIGHT
    assert sorted(step[2] for step in steps(asked.trace)) == ["done", "done", "failed"]


async def test_vote_without_any_sample_raises_what_failed(open_swarm: Open) -> None:
    with pytest.raises(UnavailableError, match="It is down"):
        await open_swarm({"primary": model("a", DOWN)}).ask(PROBLEM, "vote")


async def test_request_that_the_model_refuses_passes_its_error(open_swarm: Open) -> None:
    for strategy in ("single", "cascade", "vote", "split", "synthesise"):
        swarm = open_swarm({"primary": model("a", BadRequestError("temperature 9 is too hot"))})
        with pytest.raises(BadRequestError, match="too hot"):
            await swarm.ask(PROBLEM, strategy)


async def test_what_cannot_be_compared_is_not_voted_on(open_swarm: Open) -> None:
    voter = model("a", "A poem.")
    asked = await open_swarm({"primary": voter}).ask("Write a short poem about the sea", "vote")
    assert (asked.trace.strategy, asked.trace.wished_strategy) == ("single", "vote")
    assert asked.trace.notes == ["vote became single: the answers to this cannot be compared"]
    assert len(voter.calls) == 1


# --- split

PARTS = "1. What is a crab?\n2. What is a snail?"


def parted(payload: Payload) -> Told:
    said = last_said(payload)
    if "Put them together" in said:
        return "Together."
    if "crab?" in said.rpartition("only briefly: ")[2]:
        return "A crab walks."
    return "A snail creeps."


async def test_listed_parts_are_answered_apart_and_put_together(open_swarm: Open) -> None:
    worker = ToldModel(parted, model="a")
    asked = await open_swarm({"primary": worker}).ask(PARTS, "split")
    assert asked.text == "Together."
    assert [step[0] for step in steps(asked.trace)] == ["part", "part", "assemble"]
    assert "A crab walks." in last_said(worker.calls[-1])
    assert "A snail creeps." in last_said(worker.calls[-1])


async def test_parts_are_planned_where_the_request_does_not_list_them(open_swarm: Open) -> None:
    plan = json.dumps({"parts": ["what a crab is", "what a snail is"]})
    coordinator = model("c", f"Here you are: {plan}")
    swarm = open_swarm({"primary": ToldModel(parted, model="a"), "coordinator": coordinator})
    asked = await swarm.ask("Tell me of crabs and also of snails", "split")
    assert [step[:2] for step in steps(asked.trace)] == [
        ("plan", "coordinator"),
        ("part", "primary"),
        ("part", "primary"),
        ("assemble", "primary"),
    ]
    assert coordinator.calls[0]["response_format"]["type"] == "json_schema"


async def test_plan_is_asked_again_without_a_schema_where_the_endpoint_has_none(open_swarm: Open) -> None:
    def plan(payload: Payload) -> Told:
        if "response_format" in payload:
            return BadRequestError("response_format is not supported")
        return '{"parts": ["what a crab is", "what a snail is"]}'

    swarm = open_swarm({"primary": ToldModel(parted, model="a"), "coordinator": ToldModel(plan, model="c")})
    asked = await swarm.ask("Tell me of crabs and also of snails", "split")
    assert asked.text == "Together."


@pytest.mark.parametrize("plan", ["I cannot.", '{"parts": []}', '{"parts": "all of it"}', '{"parts": [1, null]}', DOWN])
async def test_without_a_plan_one_model_answers_all(open_swarm: Open, plan: Told) -> None:
    swarm = open_swarm({"primary": model("a", "All of it."), "coordinator": model("c", plan)})
    asked = await swarm.ask("Tell me of crabs and also of snails", "split")
    assert asked.text == "All of it."
    assert (asked.trace.strategy, asked.trace.wished_strategy) == ("single", "split")


async def test_a_part_that_fails_is_left_out_and_the_trace_says_so(open_swarm: Open) -> None:
    def tell(payload: Payload) -> Told:
        told = parted(payload)
        return DOWN if told == "A snail creeps." else told

    worker = ToldModel(tell, model="a")
    asked = await open_swarm({"primary": worker}).ask(PARTS, "split")
    assert asked.text == "Together."
    assert asked.trace.notes == ["1 of 2 parts were not answered"]
    assert "A crab walks." in last_said(worker.calls[-1])


@pytest.mark.parametrize("error", [DOWN, BadRequestError("too long")])
async def test_parts_are_given_side_by_side_where_nobody_puts_them_together(open_swarm: Open, error: Exception) -> None:
    def tell(payload: Payload) -> Told:
        told = parted(payload)
        return error if told == "Together." else told

    asked = await open_swarm({"primary": ToldModel(tell, model="a")}).ask(PARTS, "split")
    assert asked.text == "What is a crab?\nA crab walks.\n\nWhat is a snail?\nA snail creeps."
    assert "this is the best answer so far" in asked.trace.notes[0]


async def test_split_without_any_part_raises_what_failed(open_swarm: Open) -> None:
    with pytest.raises(UnavailableError, match="It is down"):
        await open_swarm({"primary": model("a", DOWN)}).ask(PARTS, "split")


def test_parts_are_read_from_lists_and_questions_in_a_row() -> None:
    assert listed_parts("Please:\n- name a crab\n- name a snail") == ["name a crab", "name a snail"]
    assert listed_parts("What is a crab?\nWhat is a snail?") == ["What is a crab?", "What is a snail?"]
    assert listed_parts("\n".join(f"{number}. do this" for number in range(MOST_PARTS + 1))) == []
    assert listed_parts("What is a crab?") == []


def test_plan_has_each_part_once_and_not_too_many() -> None:
    parts = [f"part {number}" for number in range(9)]
    assert read_parts(json.dumps({"parts": ["part 0", *parts]})) == parts[:MOST_PARTS]
    assert read_parts("[" * 100_000) == []
    assert read_parts('{"parts": ' + "[" * 100_000 + "]}") == []


# --- synthesise


async def test_drafts_are_written_side_by_side_and_one_answer_made_of_them(open_swarm: Open) -> None:
    writer = model("a", "Draft one.", "Draft two.", "Draft three.", "The best.")
    asked = await open_swarm({"primary": writer}).ask("Tell me a story", "synthesise")
    assert asked.text == "The best."
    assert [step[0] for step in steps(asked.trace)] == ["draft", "draft", "draft", "write"]
    assert all(text in last_said(writer.calls[3]) for text in ("Draft one.", "Draft two.", "Draft three."))


async def test_a_single_draft_is_the_answer(open_swarm: Open) -> None:
    asked = await open_swarm({"primary": model("a", DOWN, "Draft two.", DOWN)}).ask("Tell me a story", "synthesise")
    assert asked.text == "Draft two."
    assert asked.trace.notes == ["only one draft came"]


@pytest.mark.parametrize("error", [DOWN, BadRequestError("too long")])
async def test_first_draft_is_given_where_the_writer_fails(open_swarm: Open, error: Exception) -> None:
    writer = model("a", "Draft one.", "Draft two.", "Draft three.", error)
    asked = await open_swarm({"primary": writer}).ask("Tell me a story", "synthesise")
    assert asked.text == "Draft one."


# --- calculate


async def test_sum_is_worked_out_without_a_model(open_swarm: Open) -> None:
    unasked = model("a", "42")
    asked = await open_swarm({"primary": unasked}).ask("What is 17 * 23?")
    assert "391" in asked.text
    assert not unasked.calls
    assert (asked.trace.strategy, asked.trace.model_calls, asked.tokens) == ("calculate", 0, 0)


@pytest.mark.parametrize("question", ["What is 1 / 0?", "Who was Ada Lovelace?"])
async def test_what_the_calculator_cannot_do_a_model_is_asked(open_swarm: Open, question: str) -> None:
    asked = await open_swarm({"primary": model("a", "That has no answer.")}).ask(question, "calculate")
    assert asked.text == "That has no answer."
    assert asked.trace.strategy == "single"
    assert "a model was asked" in asked.trace.notes[0]


# --- tools


def calls(*made: tuple[str, object], id_: str = "c1") -> dict[str, Any]:
    told = [
        {"id": f"{id_}{at}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for at, (name, arguments) in enumerate(made)
    ]
    return {"role": "assistant", "content": None, "tool_calls": told}


def rain(city: str) -> dict[str, Any]:
    return calls(("rain", json.dumps({"city": city})))


async def _rain(arguments: Mapping[str, Any], user: str) -> str:
    if arguments["city"] == "Nowhere":
        raise ToolFailedError("there is no such city")
    return f"In {arguments['city']} it rains." + " Much." * arguments.get("words", 0)


RAIN = Tool(
    "rain",
    "whether it rains in a city",
    {"type": "object", "properties": {"city": {"type": "string"}, "words": {"type": "integer"}}, "required": ["city"]},
    _rain,
    result_characters=100_000,
)
ASK = "Does it rain in Oslo?"


async def with_tool(swarm: FakeSwarm, *, tool_steps: int = 4, streams: bool = False, **fields: Any) -> Any:
    """Return the reply and the trace of a question that a tool is for."""
    call = Call({"messages": [{"role": "user", "content": ASK}], **fields}, (), user="ann")
    run = swarm.swarm._planner.plan(call, Wishes(), streams=streams)
    run.toolbox, run.tools, run.tool_steps = Toolbox([RAIN]), {"rain": RAIN}, tool_steps
    reply = await answer(run, deadline_seconds=60)
    return reply, run.trace


async def test_model_may_answer_without_a_tool(open_swarm: Open) -> None:
    reply, trace = await with_tool(open_swarm({"primary": model("a", "No.")}))
    assert reply.response["choices"][0]["message"]["content"] == "No."
    assert trace.model_calls == 1


async def test_model_reads_what_the_tool_gave(open_swarm: Open) -> None:
    asker = model("a", rain("Oslo"), "It does.")
    reply, trace = await with_tool(open_swarm({"primary": asker}))
    assert reply.response["choices"][0]["message"]["content"] == "It does."
    assert [(step.purpose, step.tool, step.outcome) for step in trace.steps] == [
        ("answer", None, "done"),
        ("tool", "rain", "done"),
        ("answer", None, "done"),
    ]
    shown = asker.calls[1]["messages"][-1]
    assert shown["role"] == "tool"
    assert "In Oslo it rains." in shown["content"]
    assert trace.steps[1].arguments == {"city": "Oslo"}


async def test_tools_that_a_model_calls_again_and_again_end_at_the_limit_of_steps(open_swarm: Open) -> None:
    asker = model("a", *[rain(f"City {number}") for number in range(3)], "At last.")
    reply, trace = await with_tool(open_swarm({"primary": asker}), tool_steps=3)
    assert reply.response["choices"][0]["message"]["content"] == "At last."
    assert trace.notes == ["no more tools: 3 steps are the limit"]
    assert asker.calls[-1]["tool_choice"] == "none"


async def test_the_same_call_twice_ends_the_use_of_tools(open_swarm: Open) -> None:
    asker = model("a", rain("Oslo"), rain("Oslo"), "It does.")
    _, trace = await with_tool(open_swarm({"primary": asker}))
    assert trace.notes == ["no more tools: the model asked for the same again"]
    assert trace.model_calls == 3


async def test_more_calls_at_once_than_the_limit_are_not_made(open_swarm: Open) -> None:
    made = calls(*[("rain", json.dumps({"city": f"City {at}"})) for at in range(CALLS_A_STEP + 3)])
    asker = model("a", made, "So it is.")
    _, trace = await with_tool(open_swarm({"primary": asker}))
    assert sum(step.purpose == "tool" for step in trace.steps) == CALLS_A_STEP
    assert trace.notes == [f"3 calls of tools were not made: {CALLS_A_STEP} at a time are the limit"]
    turns = asker.calls[1]["messages"]
    assert len(turns[-CALLS_A_STEP - 1]["tool_calls"]) == CALLS_A_STEP


@pytest.mark.parametrize(
    ("made", "outcome", "told"),
    [
        (calls(("shell", "{}")), "refused", "is not allowed here"),
        (calls(("calculator", '{"expression": "1+1"}')), "refused", "is not allowed here"),
        (calls(("rain", "{broken")), "failed", "not JSON"),
        (calls(("rain", '{"city": 7}')), "failed", "do not fit"),
        (calls(("rain", None)), "failed", "do not fit"),
        (rain("Nowhere"), "failed", "no such city"),
    ],
)
async def test_call_that_cannot_be_made_is_told_to_the_model(
    open_swarm: Open, made: dict[str, Any], outcome: str, told: str
) -> None:
    asker = model("a", made, "I see.")
    reply, trace = await with_tool(open_swarm({"primary": asker}))
    assert reply.response["choices"][0]["message"]["content"] == "I see."
    assert trace.steps[1].outcome == outcome
    assert told in asker.calls[1]["messages"][-1]["content"]


async def test_flood_of_results_is_cut_and_the_model_still_answers(open_swarm: Open) -> None:
    def tell(payload: Payload) -> Told:
        if payload["tool_choice"] == "none":
            return "It rains."
        return calls(("rain", json.dumps({"city": f"City {len(payload['messages'])}", "words": 20_000})))

    asker = ToldModel(tell, model="a")
    reply, trace = await with_tool(open_swarm({"primary": asker}), max_tokens=32)
    assert reply.response["choices"][0]["message"]["content"] == "It rains."
    assert trace.notes == ["no more tools: 2000 tokens of calls and results are the limit"]
    assert max(map(estimate_prompt_tokens, asker.calls)) < 4000


async def test_model_that_talks_much_between_tools_keeps_room_for_its_answer(open_swarm: Open) -> None:
    class Talking(ToldModel):
        async def chat(self, payload: Payload, *, heard: dict[str, str] | None = None) -> dict[str, Any]:
            response = await super().chat(payload, heard=heard)
            prompt = estimate_prompt_tokens(payload)
            response["usage"] = {"prompt_tokens": prompt, "completion_tokens": payload["max_tokens"]}
            return response

    def tell(payload: Payload) -> Told:
        return "It rains." if payload["tool_choice"] == "none" else rain(f"City {len(payload['messages'])}")

    asker = Talking(tell, model="a")
    reply, trace = await with_tool(open_swarm({"primary": asker}), tool_steps=8, max_tokens=4000)
    assert reply.response["choices"][0]["message"]["content"] == "It rains."
    assert asker.calls[-1]["max_tokens"] == 4000
    assert trace.prompt_tokens + trace.completion_tokens <= trace.worst_case_tokens


async def test_endpoint_that_has_no_tools_answers_without(open_swarm: Open) -> None:
    def tell(payload: Payload) -> Told:
        return BadRequestError("tools are not supported") if "tools" in payload else "I do not know."

    reply, trace = await with_tool(open_swarm({"primary": ToldModel(tell, model="a")}))
    assert reply.response["choices"][0]["message"]["content"] == "I do not know."
    assert "because it refused them" in trace.notes[0]


async def test_tools_are_left_out_where_the_quota_is_short(open_swarm: Open) -> None:
    quotas = {"primary": Quota("a", (Limit("tokens", 2000, 3600),))}
    asker = model("a", "I do not know.")
    reply, trace = await with_tool(open_swarm({"primary": asker}, quotas=quotas))
    assert reply.response["choices"][0]["message"]["content"] == "I do not know."
    assert "tools" not in asker.calls[0]
    assert trace.notes[0].startswith("the use of tools became single: the quota of 'primary' has 2000 tokens left")


# --- quotas


@pytest.mark.parametrize("strategy", ["cascade", "vote", "split"])
async def test_strategy_that_does_not_fit_the_quota_becomes_single_and_says_so(open_swarm: Open, strategy: str) -> None:
    quotas = {name: Quota(name, (Limit("tokens", 1200, 3600),)) for name in ("primary", "specialist")}
    first = model("a", RIGHT)
    swarm = open_swarm({"primary": first, "specialist": model("b", "Yes")}, quotas=quotas)
    asked = await swarm.ask(PROBLEM, strategy, max_tokens=1000)  # type: ignore[arg-type]
    assert asked.text == RIGHT
    assert (asked.trace.strategy, asked.trace.wished_strategy) == ("single", strategy)
    assert "the quota of" in asked.trace.notes[0]
    assert len(first.calls) == 1


async def test_synthesis_becomes_a_cascade_where_only_that_fits(open_swarm: Open) -> None:
    quotas = {"primary": Quota("a", (Limit("tokens", 3000, 3600),))}
    swarm = open_swarm({"primary": model("a", RIGHT), "specialist": model("b", "Yes")}, quotas=quotas)
    asked = await swarm.ask(PROBLEM, "synthesise", max_tokens=800)
    assert (asked.trace.strategy, asked.trace.wished_strategy) == ("cascade", "synthesise")


async def test_strategy_that_fits_runs_and_settles_what_it_used(open_swarm: Open) -> None:
    quotas = {"primary": Quota("a", (Limit("tokens", 30_000, 3600),))}
    swarm = open_swarm({"primary": model("a", RIGHT)}, quotas=quotas)
    asked = await swarm.ask(PROBLEM, "vote")
    assert asked.trace.strategy == "vote"
    assert await reservations(swarm) == (0, asked.tokens)


# --- deadlines and readers who leave


def hurried() -> SwarmSettings:
    return SwarmSettings(deadline_seconds=0.2)


async def test_deadline_without_any_answer_is_a_clear_error(open_swarm: Open) -> None:
    quotas = {"primary": Quota("a", (Limit("tokens", 30_000, 3600),))}
    swarm = open_swarm({"primary": model("a", None)}, swarm=hurried(), quotas=quotas)
    for strategy in ("cascade", "vote", "split", "synthesise"):
        with pytest.raises(UnavailableError, match="No model answered within 0 s"):
            await swarm.ask(PARTS if strategy == "split" else PROBLEM, strategy)
    assert (await reservations(swarm))[0] == 0


@pytest.mark.parametrize(
    ("strategy", "said", "best"),
    [
        ("cascade", [WRONG, None], WRONG),
        ("vote", [RIGHT, None], RIGHT),
        ("vote", [None, RIGHT], RIGHT),
        ("vote", [RIGHT, "The answer is 3.", None], RIGHT),
        ("synthesise", [None, "Draft two.", None], "Draft two."),
        ("synthesise", ["Draft one.", "Draft two.", "Draft three.", None], "Draft one."),
    ],
)
async def test_deadline_gives_the_best_answer_so_far(
    open_swarm: Open, strategy: Any, said: list[Told], best: str
) -> None:
    both = ToldModel(lambda payload: said.pop(0), model="a")
    other = ToldModel(lambda payload: said.pop(0), model="b")
    asked = await open_swarm({"primary": both, "specialist": other}, swarm=hurried()).ask(PROBLEM, strategy)
    assert asked.text == best
    assert "this is the best answer so far" in asked.trace.notes[-1]
    assert "cut" in {step.outcome for step in asked.trace.steps}
    assert all(step.ended is not None for step in asked.trace.steps)


async def test_deadline_gives_the_parts_that_came(open_swarm: Open) -> None:
    def tell(payload: Payload) -> Told:
        told = parted(payload)
        return None if told == "A crab walks." else told

    asked = await open_swarm({"primary": ToldModel(tell, model="a")}, swarm=hurried()).ask(PARTS, "split")
    assert asked.text == "What is a snail?\nA snail creeps."


@pytest.mark.parametrize("strategy", ["cascade", "vote", "split", "synthesise"])
async def test_reader_who_leaves_ends_every_call_and_every_reservation(open_swarm: Open, strategy: Any) -> None:
    quotas = {name: Quota(name, (Limit("tokens", 90_000, 3600),)) for name in ("primary", "specialist")}
    hanging = {name: model(name, None) for name in quotas}
    swarm = open_swarm(hanging, quotas=quotas)
    payload = {"model": "everswarm", "messages": [{"role": "user", "content": PARTS}]}
    turn = await swarm.swarm.begin(
        Chat(payload, False, False, None),
        asker=Asker("ann"),
        wishes=Wishes(strategy=strategy),
        priority=Priority.INTERACTIVE,
    )
    task = asyncio.create_task(swarm.swarm.answer(turn))
    while not hanging["primary"].calls:
        await asyncio.sleep(0)
    assert (await reservations(swarm))[0] > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await reservations(swarm))[0] == 0
    assert {step.outcome for step in turn.run.trace.steps if step.role} == {"cut"}


# --- streams


async def streamed(swarm: FakeSwarm, text: str, strategy: Any) -> tuple[str, dict[str, Any], Any]:
    """Return the text of a stream, its token counts, and the turn."""
    payload = {"model": "everswarm", "messages": [{"role": "user", "content": text}], "stream": True}
    turn = await swarm.swarm.begin(
        Chat({**payload, "stream_options": {"include_usage": True}}, True, True, None),
        asker=Asker("ann"),
        wishes=Wishes(strategy=strategy),
        priority=Priority.INTERACTIVE,
    )
    told: list[str] = []
    turn.run.tell = told.append
    answered = await swarm.swarm.answer_stream(turn)
    chunks = [chunk async for together in answered.chunks for chunk in together]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    return said, chunks[-1].get("usage") or {}, turn


@pytest.mark.parametrize(
    ("strategy", "text", "said"),
    [
        ("cascade", PROBLEM, RIGHT),
        ("split", PARTS, "Together."),
        ("vote", PROBLEM, WRONG),
        ("synthesise", PROBLEM, "Best."),
    ],
)
async def test_last_call_streams_and_its_usage_and_trace_are_complete(
    open_swarm: Open, strategy: str, text: str, said: str
) -> None:
    def tell(payload: Payload) -> Told:
        if "drafts of an answer" in last_said(payload):
            return "Best."
        return parted(payload) if strategy == "split" else WRONG

    quotas = {"primary": Quota("a", (Limit("tokens", 90_000, 3600),))}
    swarm = open_swarm({"primary": ToldModel(tell, model="a"), "specialist": model("b", RIGHT)}, quotas=quotas)
    found, usage, turn = await streamed(swarm, text, strategy)
    trace = turn.run.trace
    assert found == said
    assert trace.strategy == strategy
    assert all(step.outcome in ("done", "failed") for step in trace.steps)
    assert all(step.prompt_tokens and step.completion_tokens for step in trace.steps if step.role)
    assert usage["total_tokens"] == trace.prompt_tokens + trace.completion_tokens <= trace.worst_case_tokens
    assert (await reservations(swarm))[0] == 0


async def test_reader_of_a_stream_who_leaves_cuts_the_last_step(open_swarm: Open) -> None:
    quotas = {"specialist": Quota("b", (Limit("tokens", 90_000, 3600),))}
    swarm = open_swarm({"primary": model("a", WRONG), "specialist": model("b", RIGHT)}, quotas=quotas)
    payload = {"model": "everswarm", "messages": [{"role": "user", "content": PROBLEM}], "stream": True}
    turn = await swarm.swarm.begin(
        Chat(payload, True, False, None),
        asker=Asker("ann"),
        wishes=Wishes(strategy="cascade"),
        priority=Priority.INTERACTIVE,
    )
    answered = await swarm.swarm.answer_stream(turn)
    await anext(answered.chunks)
    await answered.chunks.aclose()
    assert turn.run.trace.steps[-1].outcome == "cut"
    assert (await reservations(swarm))[0] == 0


# --- what is shown


def test_appendix_goes_to_the_users_last_message() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert with_appendix(messages, "d")[-1] == {"role": "user", "content": "c\n\nd"}
    assert messages[-1]["content"] == "c"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert with_appendix(parts, "d")[0]["content"][-1] == {"type": "text", "text": "d"}
