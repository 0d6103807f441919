"""The same request has the same key, and another one has another."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.gateway.cache import cache_key

ASK = {
    "model": "everswarm",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}


def key(payload=ASK, /, *, owner="anna", targets=("primary",), on_request=False, **changed):
    return cache_key({**payload, **changed}, targets=targets, user=owner, on_request=on_request)


@pytest.mark.parametrize("temperature", [None, 0.1, 1, 2.0, "0"])
def test_answer_is_determined_only_at_temperature_zero(temperature):
    assert key(temperature=temperature) is None
    assert key({name: value for name, value in ASK.items() if name != "temperature"}) is None
    assert key() is not None


def test_asker_may_be_content_with_an_earlier_answer():
    warm = key(temperature=0.7, on_request=True)
    assert warm is not None
    assert warm != key(temperature=0.8, on_request=True)
    assert warm != key(temperature=None, on_request=True)
    assert key(on_request=True) == key()
    assert key(temperature=1, n=3, on_request=True) is not None


@pytest.mark.parametrize(
    "same",
    [
        {"temperature": 0.0},
        {"temperature": -0.0},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "somebody", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"model": "primary"},
        {"n": 1, "stop": None, "logprobs": False, "tools": None, "seed": None, "max_tokens": None},
        {"response_format": {"type": "text"}},
        {"messages": [{"content": "What is the capital of France?", "role": "user"}]},
    ],
)
def test_what_changes_no_answer_changes_no_key(same):
    assert key(**same) == key()


@pytest.mark.parametrize(
    "other",
    [
        {"messages": [{"role": "user", "content": "What is the capital of France? "}]},
        {"messages": [{"role": "system", "content": "What is the capital of France?"}]},
        {"n": 2},
        {"seed": 1},
        {"stop": "."},
        {"max_tokens": 5},
        {"max_completion_tokens": 5},
        {"logprobs": True},
        {"top_p": 1},  # where it is not said, an endpoint may have a default of its own
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"something_new": None},
    ],
)
def test_what_may_change_the_answer_changes_the_key(other):
    assert key(**other) not in {None, key()}


def test_numbers_and_lists_that_mean_the_same_are_equal():
    assert key(top_p=1) == key(top_p=1.0)
    assert key(stop="END") == key(stop=["END"])
    assert key(stop=["a", "b"]) != key(stop=["b", "a"])


def test_order_of_names_matters_only_where_the_model_sees_it():
    assert key(dict(reversed(ASK.items()))) == key()
    one = {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {}, "b": {}}}}}
    other = {"type": "json_schema", "json_schema": {"schema": {"properties": {"b": {}, "a": {}}}}}
    assert key(response_format=one) != key(response_format=other)
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert key({**ASK, "tools": tools, "response_format": one}) == key({**ASK, "response_format": one, "tools": tools})


def test_users_and_targets_have_keys_of_their_own():
    keys = {
        key(),
        key(owner="berta"),
        key(owner=None),
        key(owner=""),
        key(owner="null"),
        key(targets=("specialist",)),
        key(targets=("primary", "specialist")),
        key(targets=("specialist", "primary")),
    }
    assert len(keys) == 8
    assert all(len(one) == 32 for one in keys)


@pytest.mark.parametrize("odd", [{"seed": 2**70}, {"messages": [{"role": "user", "content": "\ud800"}]}])
def test_what_cannot_be_written_is_not_cached(odd):
    assert key(**odd) is None


@given(st.permutations(sorted({**ASK, "top_p": 0.5, "seed": 3, "tools": [{"type": "function"}]}.items())))
def test_key_does_not_know_the_order_of_names(items):
    assert key(dict(items)) == key(dict(sorted(items)))


def test_request_is_not_changed():
    payload = {**ASK, "stop": "x", "tools": [{"b": 1, "a": 2}]}
    before = copy.deepcopy(payload)
    key(payload)
    assert payload == before
