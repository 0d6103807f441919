"""Chunks and completions say the same, and the official client takes both."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from everswarm.server.gateway.completions import PIECES, as_chunks, assemble, is_whole

TEXT = st.text(max_size=400)
TOKEN = st.fixed_dictionaries(
    {"token": st.text(max_size=5), "logprob": st.floats(-20, 0), "bytes": st.none(), "top_logprobs": st.just([])}
)
LOGPROBS = st.fixed_dictionaries(
    {"content": st.none() | st.lists(TOKEN, max_size=4), "refusal": st.none() | st.lists(TOKEN, max_size=2)}
)
TOOL_CALL = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=9),
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": st.text(min_size=1, max_size=9), "arguments": TEXT}),
    }
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": st.none() | TEXT},
    optional={
        "refusal": st.none() | TEXT,
        "reasoning_content": st.none() | TEXT,
        "tool_calls": st.none() | st.lists(TOOL_CALL, max_size=3),
        "annotations": st.just([]),
    },
)
CHOICE = st.fixed_dictionaries(
    {"message": MESSAGE, "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "content_filter"])},
    optional={"logprobs": st.none() | LOGPROBS, "stop_reason": st.none() | st.integers() | st.text(max_size=5)},
)
USAGE = st.fixed_dictionaries(
    {name: st.integers(0, 9000) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
)
COMPLETION = st.builds(
    lambda frame, choices: {**frame, "choices": [{"index": index, **choice} for index, choice in enumerate(choices)]},
    st.fixed_dictionaries(
        {
            "id": st.text(min_size=1, max_size=20),
            "object": st.just("chat.completion"),
            "created": st.integers(1, 2**40),
            "model": st.text(min_size=1, max_size=20),
        },
        optional={
            "system_fingerprint": st.none() | st.text(max_size=9),
            "usage": USAGE,
            "timings": st.fixed_dictionaries({"predicted_ms": st.floats(0, 1000)}),
        },
    ),
    st.lists(CHOICE, min_size=1, max_size=3),
)


def chunk(delta, finish_reason=None, index=0, **more):
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m",
        "choices": [choice], **more,
    }  # fmt: skip


def last_chunk(**more):
    return {**chunk({}), "choices": [], **more}


@given(COMPLETION)
def test_chunks_of_a_completion_assemble_to_it(completion):
    before = copy.deepcopy(completion)
    chunks = as_chunks(completion)
    kept = copy.deepcopy(chunks)
    assert assemble(chunks) == completion == before
    assert chunks == kept


@given(COMPLETION)
def test_official_client_takes_both_directions(completion):
    chunks = as_chunks(completion)
    for piece in chunks:
        ChatCompletionChunk.model_validate(piece)
    ChatCompletion.model_validate(assemble(chunks))


@given(COMPLETION)
def test_usage_that_nobody_asked_for_is_not_streamed(completion):
    chunks = as_chunks(completion, include_usage=False)
    assert all(len(piece["choices"]) == 1 and "usage" not in piece for piece in chunks)
    assert assemble(chunks) == {name: value for name, value in completion.items() if name != "usage"}


def test_long_text_comes_in_few_pieces_and_usage_last():
    message = {"role": "assistant", "content": "word " * 2000}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    whole = assemble([chunk(message, "stop"), last_chunk(usage=usage)])
    chunks = as_chunks(whole)
    assert len(chunks) == 1 + PIECES + 1 + 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage


def test_short_text_is_one_piece():
    chunks = as_chunks(assemble([chunk({"role": "assistant", "content": "Paris."}, "stop")]))
    assert [piece["choices"][0]["delta"] for piece in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Paris."},
        {},
    ]


def test_stream_of_llama_cpp_assembles():
    timings = {"prompt_n": 12, "predicted_ms": 8.5}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    whole = assemble(
        [
            chunk({"role": "assistant", "content": None}, system_fingerprint="b6000"),
            chunk({"reasoning_content": "Well"}, system_fingerprint="b6000"),
            chunk({"reasoning_content": ", hm"}, system_fingerprint="b6000"),
            chunk({"content": "Par"}, system_fingerprint="b6000"),
            chunk({"content": "is"}, system_fingerprint="b6000"),
            chunk({}, "stop", system_fingerprint="b6000"),
            last_chunk(system_fingerprint="b6000", usage=usage, timings=timings),
        ]
    )
    assert whole == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "system_fingerprint": "b6000",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Paris", "reasoning_content": "Well, hm"},
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
        "timings": timings,
    }
    assert ChatCompletion.model_validate(whole).choices[0].message.content == "Paris"


def test_stream_of_openai_with_tools_assembles():
    def calls(*items):
        return {"tool_calls": list(items)}

    def more(index, arguments):
        return {"index": index, "function": {"arguments": arguments}}

    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    whole = assemble(
        [
            chunk({"role": "assistant", "content": None, "refusal": None}, usage=None),
            chunk(calls({"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}})),
            chunk(calls(more(0, '{"city"')), usage=None),
            chunk(calls({"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": ""}})),
            chunk(calls(more(0, ':"Bonn"}'), more(1, "{}"))),
            chunk({}, "tool_calls", usage=None),
            last_chunk(usage=usage),
        ]
    )  # fmt: skip
    message = whole["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"city":"Bonn"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert whole["usage"] == usage
    assert ChatCompletion.model_validate(whole).choices[0].finish_reason == "tool_calls"


def test_tool_calls_without_index_are_told_apart_by_id():
    piece = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = assemble(
        [chunk({"tool_calls": [{"id": "a", **piece}]}), chunk({"tool_calls": [{"id": "b", **piece}]}, "tool_calls")]
    )
    assert [call["id"] for call in whole["choices"][0]["message"]["tool_calls"]] == ["a", "b"]


def test_names_that_are_said_again_are_not_doubled():
    again = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "x"}}
    whole = assemble(
        [chunk({"role": "assistant", "tool_calls": [again]}), chunk({"role": "assistant", "tool_calls": [again]})]
    )
    message = whole["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["tool_calls"] == [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "xx"}}]


def test_choices_that_come_mixed_are_put_in_order():
    whole = assemble(
        [
            chunk({"content": "b"}, index=1),
            chunk({"content": "a"}),
            chunk({"content": "B"}, "stop", 1),
            chunk({}, "length"),
        ]
    )
    assert [(choice["message"]["content"], choice["finish_reason"]) for choice in whole["choices"]] == [
        ("a", "length"),
        ("bB", "stop"),
    ]


def test_logprobs_are_continued():
    def piece(token):
        made = chunk({"content": token})
        made["choices"][0]["logprobs"] = {"content": [{"token": token, "logprob": -1.0}], "refusal": None}
        return made

    end = chunk({}, "stop")
    end["choices"][0]["logprobs"] = None
    whole = assemble([piece("a"), piece("b"), end])
    assert [token["token"] for token in whole["choices"][0]["logprobs"]["content"]] == ["a", "b"]


def test_first_chunk_without_an_id_does_not_name_the_answer():
    opening = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": []}
    whole = assemble([opening, chunk({"content": "x"}, "stop")])
    assert (whole["id"], whole["created"], whole["model"]) == ("chatcmpl-1", 1700000000, "m")


def test_cut_stream_is_not_whole():
    cut = [chunk({"role": "assistant", "content": "Par"}), chunk({"content": "is"})]
    assert not is_whole(assemble(cut))
    assert not is_whole(assemble([]))
    assert is_whole(assemble([*cut, chunk({}, "length")]))


@pytest.mark.parametrize("broken", [{"choices": None}, {"choices": [{"index": 0, "delta": None}]}])
def test_chunk_with_nothing_in_it_changes_nothing(broken):
    assert assemble([chunk({"content": "x"}, "stop"), {**chunk({}), **broken}]) == assemble(
        [chunk({"content": "x"}, "stop")]
    )
