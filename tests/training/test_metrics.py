"""Scores, their intervals and paired differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from everswarm.training.evaluation.metrics import (
    Measured,
    bits_per_byte,
    bleu,
    comparison_of,
    draw_counts,
    perplexity,
    rouge_l,
    score_of,
    value_of,
)
from everswarm.training.evaluation.texts import TextScore

ANSWERS = ["the cat sat on the mat", "a dog barked loudly at night", "five plus six is eleven", "completely other"]
REFERENCES = ["the cat sat on a mat", "a dog barked at night", "five plus six is eleven", "nothing in common"]


def score(measured: Measured, **options: Any):
    return score_of(measured, **({"suite": "test", "subject": "base", "weights": "hf", "seed": 0} | options))


def test_bits_per_byte_is_surprise_in_bits_over_bytes_of_all_answers():
    scores = [TextScore(-8 * math.log(2), tokens=2, answer_bytes=4), TextScore(-1 * math.log(2), 1, 5)]
    assert value_of(bits_per_byte(scores)) == pytest.approx(9 / 9)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices():
    assert value_of(perplexity([TextScore(3 * math.log(1 / 50), 3, 7)] * 4)) == pytest.approx(50)


def test_bleu_equals_sacrebleus_corpus_score():
    from sacrebleu.metrics import BLEU

    assert value_of(bleu(ANSWERS, REFERENCES)) == pytest.approx(BLEU().corpus_score(ANSWERS, [REFERENCES]).score)


def test_bleu_of_equal_texts_is_100_and_of_nothing_is_0():
    assert value_of(bleu(REFERENCES, REFERENCES)) == pytest.approx(100)
    assert value_of(bleu(["", "", "", ""], REFERENCES)) == 0


def test_rouge_l_reads_any_script():
    assert value_of(rouge_l(["Привет мир"], ["привет, мир!"])) == pytest.approx(1.0)
    assert value_of(rouge_l(["the cat"], ["the cat sat down"])) == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_bootstrap_of_counts_equals_a_plain_resample():
    statistics = np.array([[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]])
    counts = draw_counts(3, seed=4, resamples=20)
    slow = [sum((statistics[i] * int(row[i]) for i in range(3)), np.zeros(2)) for row in counts]

    assert np.array_equal(counts @ statistics, np.array(slow))
    assert (counts.sum(axis=1) == 3).all()


def test_interval_holds_the_value_and_repeats_with_the_seed():
    generator = np.random.default_rng(0)
    scores = [TextScore(-float(nats), 10, 40) for nats in generator.uniform(5, 50, size=30)]
    found = score(bits_per_byte(scores))

    assert found.low < found.value < found.high
    assert found.standard_error == pytest.approx((found.high - found.low) / 3.92, rel=0.15)
    assert found.examples == 30
    assert found == score(bits_per_byte(scores))
    assert found != score(bits_per_byte(scores), seed=1)


def test_one_example_has_an_interval_of_no_width():
    found = score(perplexity([TextScore(-2.0, 2, 8)]))
    assert found.low == found.value == found.high
    assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_paired_interval_is_narrower_than_the_spread_between_examples():
    generator = np.random.default_rng(0)
    nats = generator.uniform(5, 50, size=40)
    base = bits_per_byte([TextScore(-float(value), 10, 40) for value in nats])
    better = bits_per_byte([TextScore(-float(value) * 0.98, 10, 40) for value in nats])
    found = comparison_of(better, base, suite="test", subject="base", weights="gguf", seed=0)

    assert found.difference == pytest.approx(-0.02 * found.baseline_value)
    assert found.low <= found.difference <= found.high < 0
    assert found.high - found.low < 0.1 * (score(base).high - score(base).low)
