"""The paths through each strategy, on models that say what a test tells them; also those where something fails."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fakes.skilled_models import ToldModel
from tests.server.swarm.told_models import (
    CONVERSATION,
    DOWN,
    PARTS,
    PROBLEM,
    RIGHT,
    ROLES,
    SPENT,
    WRONG,
    Open,
    Told,
    is_check,
    last_said,
    model,
    parted,
    steps,
)

from everswarm.errors import BadRequestError, UnavailableError
from everswarm.llm.protocol import Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.swarm.strategies.split import MOST_PARTS, listed_parts, read_parts
from everswarm.settings import RoleSettings

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
    assert listed_parts("Do this: 1. Name a crab. 2. Name a snail.") == ["Name a crab.", "Name a snail."]
    assert listed_parts("I like crabs. What is a crab? Also, what is a snail?") == [
        "What is a crab?",
        "Also, what is a snail?",
    ]
    assert listed_parts("Version 2. It has 3. things") == []


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
