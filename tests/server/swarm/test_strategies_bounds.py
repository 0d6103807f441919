"""What bounds an answer, whatever its strategy: tools, quotas, deadlines, readers who leave; and how it is streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from tests.fakes.skilled_models import FakeSwarm, ToldModel
from tests.server.swarm.told_models import (
    PARTS,
    PROBLEM,
    RIGHT,
    WRONG,
    Open,
    Told,
    last_said,
    model,
    parted,
    reservations,
)

from everswarm.errors import BadRequestError, UnavailableError
from everswarm.llm.protocol import Payload
from everswarm.schemas.gateway import Priority
from everswarm.server.gateway import Call
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.gateway.quota import Limit, Quota
from everswarm.server.swarm.recording import Asker
from everswarm.server.swarm.requests import Chat, Wishes
from everswarm.server.swarm.strategies import answer
from everswarm.server.swarm.strategies.tools import CALLS_A_STEP
from everswarm.server.swarm.strategies.writing import with_appendix
from everswarm.server.swarm.tools.tool import Tool, ToolFailedError
from everswarm.server.swarm.tools.toolbox import Toolbox
from everswarm.settings import SwarmSettings

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
