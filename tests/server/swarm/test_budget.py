"""What an answer may spend: never more than was declared, whatever is taken and settled in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.server.swarm.budget import LEAST_ANSWER_TOKENS, Budget, OverBudgetError, Size

tokens = st.integers(min_value=0, max_value=3000)


def test_what_a_call_did_not_use_is_there_for_the_next() -> None:
    budget = Budget(1000)
    taken = budget.take(300, 500)
    assert (taken, taken.total, budget.left_tokens) == (Size(300, 500), 800, 200)
    budget.settle(taken, 350)
    assert budget.left_tokens == 650


def test_call_that_does_not_say_what_it_used_has_used_all() -> None:
    budget = Budget(1000)
    budget.settle(budget.take(300, 500), None)
    assert budget.left_tokens == 200


def test_answer_is_made_shorter_where_the_whole_does_not_fit() -> None:
    assert Budget(400).take(300, 500) == Size(300, 100)


def test_call_whose_shortest_answer_does_not_fit_is_refused_and_takes_nothing() -> None:
    budget = Budget(300 + LEAST_ANSWER_TOKENS - 1)
    with pytest.raises(OverBudgetError, match="a call of 300 tokens and an answer does not fit into the 307 that are"):
        budget.take(300, 500)
    assert budget.left_tokens == 307


def test_what_is_kept_is_there_again_also_after_an_error() -> None:
    budget = Budget(1000)
    with pytest.raises(OverBudgetError), budget.keep(900):
        budget.take(200, 100)
    assert budget.left_tokens == 1000


@given(
    total=st.integers(0, 5000), calls=st.lists(st.tuples(tokens, st.integers(8, 3000), st.floats(0, 1), st.booleans()))
)
def test_no_order_of_calls_spends_more_than_was_declared(total: int, calls: list[tuple[int, int, float, bool]]) -> None:
    budget, spent = Budget(total), 0
    open_calls: list[tuple[Size, int]] = []
    for prompt, answer, share, is_at_once in calls:
        try:
            taken = budget.take(prompt, answer)
        except OverBudgetError:
            continue
        assert taken.answer_tokens <= answer
        used = int(taken.total * share)
        spent += used
        open_calls.append((taken, used))
        if is_at_once:
            budget.settle(*open_calls.pop())
        assert budget.left_tokens >= 0
        assert spent <= total
    for taken, used in open_calls:
        budget.settle(taken, used)
    assert budget.left_tokens == total - spent
