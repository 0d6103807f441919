"""Answers with tools: looked up before a model is asked, or called by the model in a bounded loop.

What a tool gives is data: it stands between delimiters that it cannot know, and neither who answers, nor the system
prompt, nor which tools there are depends on it. All three are settled before the first tool runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from everswarm.errors import BadRequestError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.llm.protocol import Chunk
from everswarm.server.gateway import Answered, AnsweredStream
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.budget import OverBudgetError, Planned
from everswarm.server.swarm.roles import with_system
from everswarm.server.swarm.run import Ask, Reply, Run
from everswarm.server.swarm.strategies.writing import with_appendix
from everswarm.server.swarm.tools.calculator import read_sum
from everswarm.server.swarm.tools.fence import clean_values, explain, fence, new_nonce
from everswarm.server.swarm.tools.tool import Tool, plain_name, strict_json
from everswarm.server.swarm.tools.toolbox import ToolResult

CALLS_A_STEP = 4  # more are answered with 'not run'
RESULT_TOKENS = 2000  # of all calls and results of one answer, by the estimate
CALL_TOKENS = 200  # of a call's name and id, and the fence around its result
STEP_TOKENS = 200 + CALLS_A_STEP * CALL_TOKENS  # of the explanation, and of the calls that go beyond RESULT_TOKENS
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
ONLY_CALLS = "The model called tools until its steps were used up, and gave no answer. Ask again, or in other words."
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
        result = await _result(run, allowed, name, _looked_up_with(name, run.question))
        if result.outcome == "done":
            shown.append(fence(room.cut(result.text), source=name, nonce=nonce))
    if shown:
        messages = with_appendix(with_system(run.messages, explain(nonce)), "\n\n".join(shown))
        run.call = replace(run.call, payload={**run.call.payload, "messages": messages})


def _looked_up_with(name: str, question: str) -> dict[str, str]:
    if name == "documents":
        return {"query": question}
    return {"expression": read_sum(question) or question} if name == "calculator" else {}


async def with_tools(run: Run) -> Reply:
    """Let the model call tools until it answers; a step without a call is the answer."""
    nonce, room = new_nonce(), _Room()
    messages: list[Message] = with_system(run.messages, explain(nonce))
    definitions = [definition(tool) for tool in run.tools.values()]
    asked_before: set[str] = set()
    last_tokens = _step_tokens(run) + run.answer_tokens  # of the call that answers without tools
    for number in range(run.tool_steps):
        choice = "required" if number == 0 and run.route.kind == "tools" and run.route.is_sure else "auto"
        fields = {"tools": definitions, "tool_choice": choice}
        try:
            with run.keep(last_tokens):
                ask = Ask(run.route.role, "answer", run.route.reason, messages=messages, fields=fields)
                answered = await run.ask(ask)
        except OverBudgetError:
            run.trace.note("no more tools: the tokens for this answer are nearly used up")
            break
        except BadRequestError as error:
            if number:
                raise
            run.trace.note(f"a model was asked without tools, because it refused them: {error}")
            return await run.finish(run.route.role, why=run.route.reason)
        calls = read_calls(answered)
        if not calls:
            return _words_only(answered)
        made = {_said(call) for call in calls[:CALLS_A_STEP]}
        repeated = made & asked_before
        asked_before |= made
        messages = [*messages, *await _called(run, calls, nonce, room)]
        if repeated:
            run.trace.note("no more tools: the model asked for the same again")
            break
        if room.left_tokens <= 0:
            run.trace.note(f"no more tools: {RESULT_TOKENS} tokens of calls and results are the limit")
            break
    else:
        run.trace.note(f"no more tools: {run.tool_steps} steps are the limit")
    fields = {"tools": definitions, "tool_choice": "none"}
    reply = await run.finish(run.route.role, why="with what the tools gave", messages=messages, fields=fields)
    return _words_only(reply)


def worst_case(run: Run) -> Sequence[Planned]:
    """Every step reads the question, the tools and all results again; answers have twice the length of one, in all."""
    role, step = run.route.role, _step_tokens(run)
    last = Planned(role, step + run.answer_tokens)
    return [Planned(role, step + run.answer_tokens), *[Planned(role, step)] * (run.tool_steps - 1), last]


def _step_tokens(run: Run) -> int:
    definitions = [definition(tool) for tool in run.tools.values()]
    tokens = run.size(run.route.role).prompt_tokens + estimate_prompt_tokens({"tools": definitions})
    return tokens + RESULT_TOKENS + STEP_TOKENS


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
            identifier = str(call.get("id") or "")
            if not _ID.fullmatch(identifier):
                identifier = f"call_{new_id()}"
            calls.append((identifier, function["name"], text or "{}"))
    return calls


class _Room:
    """How much of the results still fits into the prompts of one answer."""

    def __init__(self) -> None:
        self.left_tokens = RESULT_TOKENS

    def take(self, tokens: int) -> None:
        """Take room for what cannot be cut."""
        self.left_tokens -= tokens

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
    run.tell("using " + ", ".join(dict.fromkeys(plain_name(name[:64]) for _, name, _ in made)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_result(run, run.tools, name, arguments)) for _, name, arguments in made]
    results = [task.result() for task in tasks]
    room.take(CALL_TOKENS * len(made))
    said = [
        {"id": identifier, "type": "function", "function": _said_again(name, arguments, room)}
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
    step.tool = plain_name(name[:64])
    result = await run.toolbox.call(allowed, name, arguments, user=run.call.user)
    step.arguments = dict(result.arguments)
    step.end(result.outcome, result.text)
    return result


def _said_again(name: str, arguments: str, room: _Room) -> dict[str, str]:
    """Return a call as its model reads it again: clean as what tools say, and JSON, or endpoints would refuse all."""
    text = "{}"
    with contextlib.suppress(ValueError, RecursionError):
        value = strict_json(arguments)
        text = json.dumps(clean_values(value), ensure_ascii=False) if isinstance(value, dict) else text
    if (tokens := _tokens(text)) > room.left_tokens // 2:  # what results need more
        return {"name": plain_name(name[:64]), "arguments": "{}"}
    room.take(tokens)
    return {"name": plain_name(name[:64]), "arguments": text}


def _words_only(reply: Reply) -> Reply:
    """Return an answer without calls, which would be of our tools and for nobody who reads it.

    Raises:
        UnavailableError: nothing else is in it; a stream says so at its end.
    """
    if isinstance(reply, AnsweredStream):
        return replace(reply, chunks=_pieces_of_words(reply.chunks))
    choices = reply.response.get("choices") or [{}]
    message = choices[0].get("message") or {}
    if not message.get("tool_calls"):
        return reply
    words = {name: value for name, value in message.items() if name != "tool_calls"}
    if not words.get("content"):
        raise UnavailableError(ONLY_CALLS)
    choice = {**choices[0], "message": words, "finish_reason": "stop"}
    return replace(reply, response={**reply.response, "choices": [choice]})


async def _pieces_of_words(chunks: AsyncGenerator[list[Chunk], None]) -> AsyncGenerator[list[Chunk], None]:
    has_words = has_calls = False
    async with contextlib.aclosing(chunks):
        async for together in chunks:
            for chunk in together:
                for choice in chunk.get("choices") or ():
                    delta = choice.get("delta") or {}
                    has_words |= bool(delta.get("content"))
                    has_calls |= bool(delta.get("tool_calls"))
            yield [_without_calls(chunk) for chunk in together] if has_calls else together
    if has_calls and not has_words:
        raise UnavailableError(ONLY_CALLS)


def _without_calls(chunk: Chunk) -> Chunk:
    choices = []
    for choice in chunk.get("choices") or ():
        delta = {name: value for name, value in (choice.get("delta") or {}).items() if name != "tool_calls"}
        ended = "stop" if choice.get("finish_reason") == "tool_calls" else choice.get("finish_reason")
        choices.append({**choice, "delta": delta, "finish_reason": ended})
    return {**chunk, "choices": choices}


def _said(call: tuple[str, str, str]) -> str:
    return f"{call[1]} {call[2]}"


def _tokens(text: str) -> int:
    return estimate_prompt_tokens({"messages": [{"content": text}]})
