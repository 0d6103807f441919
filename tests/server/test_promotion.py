from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everswarm.schemas.evaluation import Comparison, Evaluation
from everswarm.server.experiments import decide

CANDIDATE, IN_USE = "c" * 64, "d" * 64


def comparison(suite: str, weights: str, difference: float, **values: Any) -> Comparison:
    fields: dict[str, Any] = {
        "suite": suite,
        "weights": weights,
        "metric": "bits_per_byte",
        "baseline": "base",
        "baseline_value": 1.0,
        "difference": difference,
        "low": difference - 0.005,
        "high": difference + 0.005,
        "better": "lower",
        **values,
    }
    return Comparison(**fields)


def evaluation(*comparisons: Comparison, incumbent: str | None = None) -> Evaluation:
    return Evaluation(
        dataset="a" * 64,
        adapter="b" * 64,
        adapter_gguf=CANDIDATE,
        base_gguf="e" * 64,
        incumbent_gguf=incumbent,
        engines={"hf": "torch", "gguf": "llama.cpp"},
        scores=[],
        comparisons=list(comparisons),
        answers=[],
    )


def measured(
    *, test: float = -0.1, general: float = 0.0, hf: float = -0.1, baseline: str = "base", incumbent: str | None = None
) -> Evaluation:
    return evaluation(
        comparison("test", "gguf", test, baseline=baseline),
        comparison("general", "gguf", general),
        comparison("test", "hf", hf, baseline=baseline),
        incumbent=incumbent,
    )


def failed_checks(found: Evaluation, margin: float = 0.01) -> list[str]:
    decision = decide(found, margin=margin)
    assert decision.promote is all(check.passed for check in decision.checks)
    return [check.name for check in decision.checks if not check.passed]


def test_better_candidate_is_released_with_its_numbers():
    decision = decide(measured(), margin=0.01)
    assert decision.promote
    assert decision.reason == (
        "Released: 0.900 bits per byte against 1.000 of the base model on the held-out questions, -10.0% "
        "(-10.5% to -9.5%), and +0.5% at worst on general text, where up to +1.0% is allowed."
    )


def test_worse_candidate_is_held_and_the_reason_names_what_failed():
    decision = decide(measured(general=0.03), margin=0.01)
    assert not decision.promote
    assert decision.reason == (
        "Not released: general text: 1.030 bits per byte against 1.000 of the base model, +3.5% at worst "
        "(limit: at most 1.0% worse)."
    )


def test_candidate_that_is_only_probably_not_worse_is_held():
    assert failed_checks(measured(test=0.004, hf=0.004)) == []
    assert failed_checks(measured(test=0.006, hf=0.006)) == ["held-out questions"]  # its interval ends at +1.1 %


def test_upper_end_at_the_margin_passes():
    exact = comparison("test", "gguf", 0.0, high=0.01)
    others = (comparison("general", "gguf", 0.0), comparison("test", "hf", 0.0))
    assert failed_checks(evaluation(exact, *others)) == []


def test_margin_is_a_share_of_the_baseline():
    found = evaluation(
        comparison("test", "gguf", 0.0, baseline_value=0.4),
        comparison("general", "gguf", 0.0, baseline_value=0.4),
        comparison("test", "hf", 0.0, baseline_value=0.4),
    )
    assert failed_checks(found) == ["held-out questions", "general text"]


def test_after_the_first_release_the_questions_are_compared_with_the_release_in_use():
    assert failed_checks(measured(baseline="incumbent", incumbent=IN_USE)) == []
    assert failed_checks(measured(baseline="base", incumbent=IN_USE)) == ["held-out questions", "same sign"]
    assert "of the release in use" in decide(measured(baseline="incumbent", incumbent=IN_USE), margin=0.01).reason


def test_formats_that_contradict_each_other_hold_the_release():
    assert failed_checks(measured(test=-0.1, hf=0.1)) == ["same sign"]
    assert failed_checks(measured(test=-0.1, hf=0.009)) == []  # within the margin is no contradiction
    assert failed_checks(measured(test=0.0, hf=-0.1)) == []


def test_adapter_in_use_is_not_released_again():
    decision = decide(measured(incumbent=CANDIDATE), margin=0.01)
    assert (decision.promote, decision.reason) == (False, "Not released: this adapter is already in use.")


def test_nothing_measured_is_not_released():
    decision = decide(evaluation(), margin=0.01)
    assert not decision.promote
    assert (
        "held-out questions: was not measured" in decision.reason
        and "general text: was not measured" in decision.reason
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["baseline_value", "difference", "low", "high"])
def test_what_is_not_a_number_is_not_a_measurement(field: str, value: float):
    broken = comparison("test", "gguf", -0.1).model_copy(update={field: value})
    rest = (comparison("general", "gguf", 0.0), comparison("test", "hf", -0.1))
    assert failed_checks(evaluation(broken, *rest)) == ["held-out questions", "same sign"]


shares = st.floats(min_value=-0.5, max_value=0.5)


@given(test=shares, general=shares, hf=shares, margin=st.floats(min_value=0, max_value=0.1))
def test_nothing_ships_whose_worst_case_is_over_the_margin(test: float, general: float, hf: float, margin: float):
    decision = decide(measured(test=test, general=general, hf=hf), margin=margin)
    if decision.promote:
        assert test + 0.005 <= margin and general + 0.005 <= margin
    assert decision.reason
