"""A call that a request demands, of a model that was not taught to call."""

from __future__ import annotations

import json

import pytest

from everswarm.errors import BadRequestError
from everswarm.llm.fake import FakeChatModel
from everswarm.llm.forced_tools import ForcedTools
from everswarm.server.gateway.completions import assemble

ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
NOW = {"name": "now"}
ASK = [{"role": "user", "content": "1 and 2?"}]


def asking(*functions, choice="required") -> dict:
    return {"messages": ASK, "tools": [{"type": "function", "function": it} for it in functions], "tool_choice": choice}


def named(name: str) -> dict:
    return {"type": "function", "function": {"name": name}}


def calls_in(completion) -> list[tuple[str, str]]:
    message = completion["choices"][0]["message"]
    assert not message["content"]
    assert completion["choices"][0]["finish_reason"] == "tool_calls"
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]


@pytest.mark.parametrize(
    ("payload", "says", "called"),
    [
        (asking(ADD), '{"a": 1}', ("add", '{"a": 1}')),
        (asking(NOW, ADD, choice=named("add")), '{"a": 1}', ("add", '{"a": 1}')),
        (asking(NOW, ADD), '{"name": "add", "arguments": {"a": 1}}', ("add", '{"a": 1}')),
    ],
)
async def test_demanded_call_comes_whole_and_streamed(payload, says, called):
    model = ForcedTools(FakeChatModel([says]))
    assert calls_in(await model.chat(payload)) == [called]
    chunks = [chunk async for together in model.stream(payload) for chunk in together]
    assert calls_in(assemble(chunks)) == [called]


async def test_model_is_told_of_the_function_and_held_to_its_schema():
    model = FakeChatModel(["{}"])
    await ForcedTools(model).chat(asking(ADD))
    sent = model.calls[0]
    assert json.dumps(ADD) in sent["messages"][0]["content"]
    assert sent["messages"][1:] == ASK
    assert sent["response_format"]["json_schema"]["schema"] == ADD["parameters"]
    assert not {"tools", "tool_choice"} & set(sent)


@pytest.mark.parametrize("choice", ["auto", "none", None])
async def test_request_that_demands_no_call_passes_unchanged(choice):
    model = FakeChatModel(["hello"])
    payload = asking(ADD, choice=choice)
    answer = await ForcedTools(model).chat(payload)
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert model.calls == [payload]
    chunks = [chunk async for together in ForcedTools(model).stream(payload) for chunk in together]
    assert assemble(chunks)["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("payload", [asking(choice="required"), asking(ADD, choice=named("divide"))])
async def test_function_that_is_not_there_cannot_be_demanded(payload):
    with pytest.raises(BadRequestError, match=r"tool_choice demands a call.*Add it there"):
        await ForcedTools(FakeChatModel(["{}"])).chat(payload)


async def test_call_that_was_cut_says_so():
    class Cut(FakeChatModel):
        async def chat(self, payload, *, heard=None):
            answer = await super().chat(payload)
            answer["choices"][0]["finish_reason"] = "length"
            return answer

    answer = await ForcedTools(Cut(['{"a": 1'])).chat(asking(ADD))
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1'
