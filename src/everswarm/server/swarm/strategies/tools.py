"""Answers with tools: looked up before a model is asked, or called by the model in a bounded loop.

What a tool gives is data: it stands between delimiters that it cannot know, and neither who answers, nor the system
prompt, nor which tools there are depends on it. All three are settled before the first tool runs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from everswarm.identifiers import new_id
from everswarm.server.gateway import Answered
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.budget import OverBudgetError, Planned
from everswarm.server.swarm.roles import with_system
from everswarm.server.swarm.run import Ask, Reply, Run
from everswarm.server.swarm.strategies.writing import with_appendix
from everswarm.server.swarm.tools.fence import explain, fence, new_nonce
from everswarm.server.swarm.tools.tool import Tool
from everswarm.server.swarm.tools.toolbox import ToolResult

CALLS_A_STEP = 4  # more are answered with 'not run'
RESULT_TOKENS = 2000  # of all calls and results of one answer, by the estimate
STEP_TOKENS = 200  # of the explanation, ids and fences
Message = Mapping[str, Any]


async def look_up(run: Run) -> None:
    """Put what the built-in tools of the route know behind the question, before any model is asked."""
    if not run.route.lookups or run.toolbox is None:
        return
    role = run.roles.get(run.route.role)
    allowed = run.toolbox.allowed(role.tools if role else ())
    nonce, room = new_nonce(), _Room()
    shown = []
    for name in run.route.lookups:
        arguments = {"query": run.question} if name == "documents" else {}
        result = await _result(run, allowed, name, arguments)
        if result.outcome == "done":
            shown.append(fence(room.cut(result.text), source=name, nonce=nonce))
    if shown:
        messages = with_appendix(with_system(run.messages, explain(nonce)), "\n\n".join(shown))
        run.call = replace(run.call, payload={**run.call.payload, "messages": messages})


async def with_tools(run: Run) -> Reply:
    """Let the model call tools until it answers; a step without a call is the answer."""
    nonce, room = new_nonce(), _Room()
    messages: list[Message] = with_system(run.messages, explain(nonce))
    definitions = [definition(tool) for tool in run.tools.values()]
    asked_before: set[str] = set()
    for number in range(run.tool_steps):
        choice = "required" if number == 0 and run.route.kind == "tools" and run.route.is_sure else "auto"
        fields = {"tools": definitions, "tool_choice": choice}
        try:
            answered = await run.ask(Ask(run.route.role, "answer", run.route.reason, messages=messages, fields=fields))
        except OverBudgetError:
            run.trace.note("no more tools: the tokens for this answer are nearly used up")
            break
        calls = read_calls(answered)
        if not calls:
            return answered
        repeated = {_said(call) for call in calls} & asked_before
        asked_before |= {_said(call) for call in calls}
        messages = [*messages, *await _called(run, calls, nonce, room)]
        if repeated:
            run.trace.note("no more tools: the model asked for the same again")
            break
    else:
        run.trace.note(f"no more tools: {run.tool_steps} steps are the limit")
    fields = {"tools": definitions, "tool_choice": "none"}
    return await run.finish(run.route.role, why="with what the tools gave", messages=messages, fields=fields)


def worst_case(run: Run) -> Sequence[Planned]:
    """Every step reads the question, the tools and all results again; answers have twice the length of one, in all."""
    role = run.route.role
    size = run.size(role)
    definitions = [definition(tool) for tool in run.tools.values()]
    step = size.prompt_tokens + estimate_prompt_tokens({"tools": definitions}) + RESULT_TOKENS + STEP_TOKENS
    return [Planned(role, (run.tool_steps + 1) * step + 2 * size.answer_tokens)]


def definition(tool: Tool) -> dict[str, Any]:
    """Return `tool` in OpenAI's shape."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def read_calls(answered: Answered) -> list[tuple[str, str, str]]:
    """Return (id, name, arguments) of the calls that an answer makes; what is no call is left out."""
    message = (answered.response.get("choices") or [{}])[0].get("message") or {}
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            arguments = function.get("arguments")
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            calls.append((str(call.get("id") or f"call_{new_id()}"), function["name"], text or "{}"))
    return calls


class _Room:
    """How much of the results still fits into the prompts of one answer."""

    def __init__(self) -> None:
        self.left_tokens = RESULT_TOKENS

    def cut(self, text: str) -> str:
        """Return so much of `text` as fits, and take the room."""
        tokens = _tokens(text)
        while tokens > self.left_tokens and text:
            text = text[: len(text) * max(self.left_tokens, 0) // (tokens + 1)]
            tokens = _tokens(text)
        self.left_tokens -= tokens
        return text


async def _called(run: Run, calls: list[tuple[str, str, str]], nonce: str, room: _Room) -> list[Message]:
    """Return the model's turn with its calls, and a turn for the result of each."""
    made = calls[:CALLS_A_STEP]
    run.tell("using " + ", ".join(dict.fromkeys(name for _, name, _ in made)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_result(run, run.tools, name, arguments)) for _, name, arguments in made]
    results = [task.result() for task in tasks]
    said = [
        {"id": identifier, "type": "function", "function": {"name": name[:64], "arguments": room.cut(arguments)}}
        for identifier, name, arguments in made
    ]
    turns: list[Message] = [{"role": "assistant", "content": "", "tool_calls": said}]
    for (identifier, _, _), result in zip(made, results, strict=True):
        text = result.text if result.outcome == "done" else f"{result.outcome}: {result.text}"
        fenced = fence(room.cut(text), source=result.name, nonce=nonce)
        turns.append({"role": "tool", "tool_call_id": identifier, "content": fenced})
    if len(calls) > CALLS_A_STEP:
        run.trace.note(
            f"{len(calls) - CALLS_A_STEP} calls of tools were not made: {CALLS_A_STEP} at a time are the limit"
        )
    return turns


async def _result(run: Run, allowed: Mapping[str, Tool], name: str, arguments: object) -> ToolResult:
    if run.toolbox is None:
        raise AssertionError("a run with tools has a toolbox")
    step = run.trace.begin("tool")
    step.tool = name[:64]
    result = await run.toolbox.call(allowed, name, arguments, user=run.call.user)
    step.arguments = dict(result.arguments)
    step.end(result.outcome, result.text)
    return result


def _said(call: tuple[str, str, str]) -> str:
    return f"{call[1]} {call[2]}"


def _tokens(text: str) -> int:
    return estimate_prompt_tokens({"messages": [{"content": text}]})
