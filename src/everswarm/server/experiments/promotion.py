"""The promotion gate: a candidate ships if it is shown not to be worse. Pure.

Four checks, all on bits per byte (lower is better):

* `new`: the candidate's file is not the one in use.
* `held-out questions`: in the format that ships (GGUF), against the release in use, or against the
  base model before the first release. Non-inferiority: the upper end of the 95 % interval of the difference is at
  most `margin` of the baseline's value.
* `general text`: the same on general text, always against the base model, so that many small losses cannot add up.
* `same sign`: on these questions the full-precision weights tell the same story. One of the two formats more
  than `margin` better while the other is more than `margin` worse means that the export, or a measurement, is broken.

A measurement that is missing or not a finite number fails its check.
"""

from __future__ import annotations

import math

from everswarm.schemas.evaluation import Comparison, Evaluation, GateCheck, PromotionDecision, Subject, Suite, Weights

METRIC = "bits_per_byte"
SUBJECT_NAMES: dict[Subject, str] = {
    "base": "the base model",
    "incumbent": "the release in use",
    "candidate": "the candidate",
}


def decide(evaluation: Evaluation, *, margin: float) -> PromotionDecision:
    """Return whether the candidate may be released. `margin` is a share: 0.01 lets 1 % worse count as not worse."""
    if evaluation.adapter_gguf == evaluation.incumbent_gguf:
        check = GateCheck(name="new", passed=False, found="the same file", limit="a file that is not in use yet")
        return PromotionDecision(promote=False, reason="Not released: this adapter is already in use.", checks=[check])
    baseline: Subject = "incumbent" if evaluation.incumbent_gguf else "base"
    questions = _find(evaluation, suite="test", weights="gguf", baseline=baseline)
    general = _find(evaluation, suite="general", weights="gguf", baseline="base")
    full_precision = _find(evaluation, suite="test", weights="hf", baseline=baseline)
    checks = [
        GateCheck(name="new", passed=True, found="a new file", limit="a file that is not in use yet"),
        _not_worse(questions, name="held-out questions", margin=margin),
        _not_worse(general, name="general text", margin=margin),
        _same_sign(questions, full_precision, margin=margin),
    ]
    failed = [check for check in checks if not check.passed]
    if failed:
        told = "; ".join(f"{check.name}: {check.found} (limit: {check.limit})" for check in failed)
        return PromotionDecision(promote=False, reason=f"Not released: {told}.", checks=checks)
    assert questions is not None and general is not None  # else a check would have failed
    return PromotionDecision(promote=True, reason=_praise(questions, general, margin=margin), checks=checks)


def _find(evaluation: Evaluation, *, suite: Suite, weights: Weights, baseline: Subject) -> Comparison | None:
    """Return the comparison, or None where it is missing or holds what is not a number."""
    for found in evaluation.comparisons:
        if (found.suite, found.weights, found.baseline, found.metric) == (suite, weights, baseline, METRIC):
            numbers = (found.baseline_value, found.difference, found.low, found.high)
            return found if all(map(math.isfinite, numbers)) and found.baseline_value > 0 else None
    return None


def _not_worse(comparison: Comparison | None, *, name: str, margin: float) -> GateCheck:
    limit = f"at most {margin:.1%} worse"
    if comparison is None:
        return GateCheck(name=name, passed=False, found="was not measured", limit=limit)
    found = f"{_values(comparison)}, {_share(comparison.high, comparison)} at worst"
    return GateCheck(name=name, passed=comparison.high <= margin * comparison.baseline_value, found=found, limit=limit)


def _same_sign(quantised: Comparison | None, full: Comparison | None, *, margin: float) -> GateCheck:
    limit = f"not one over {margin:.1%} better and the other over {margin:.1%} worse"
    if quantised is None or full is None:
        return GateCheck(name="same sign", passed=False, found="was not measured in both formats", limit=limit)
    passed = _sign(quantised, margin=margin) * _sign(full, margin=margin) >= 0
    shares = f"{_share(quantised.difference, quantised)} as GGUF, {_share(full.difference, full)} in full precision"
    return GateCheck(name="same sign", passed=passed, found=shares, limit=limit)


def _sign(comparison: Comparison, *, margin: float) -> int:
    """Return 1 for worse, -1 for better, 0 for the same within `margin`."""
    share = comparison.difference / comparison.baseline_value
    return (share > margin) - (share < -margin)


def _praise(questions: Comparison, general: Comparison, *, margin: float) -> str:
    return (
        f"Released: {_values(questions)} on the held-out questions, {_share(questions.difference, questions)} "
        f"({_share(questions.low, questions)} to {_share(questions.high, questions)}), and "
        f"{_share(general.high, general)} at worst on general text, where up to {margin:+.1%} is allowed."
    )


def _values(comparison: Comparison) -> str:
    candidate = comparison.baseline_value + comparison.difference
    baseline = SUBJECT_NAMES[comparison.baseline]
    return f"{candidate:.3f} bits per byte against {comparison.baseline_value:.3f} of {baseline}"


def _share(difference: float, comparison: Comparison) -> str:
    return f"{difference / comparison.baseline_value:+.1%}"
