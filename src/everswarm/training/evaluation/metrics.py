"""The numbers of an evaluation, each with a percentile bootstrap over examples (95 %).

A metric is a set of per-example statistics and a function of their sums, so a resample is one matrix product.
All subjects are resampled with the same draws, which makes the differences paired (Koehn 2004, W04-3250).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from everswarm.schemas.evaluation import Comparison, Score, Subject, Suite, Weights
from everswarm.training.evaluation.texts import TextScore

RESAMPLES = 1000
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One metric of one subject, before resampling."""

    metric: str
    better: Literal["lower", "higher"]
    statistics: FloatArray  # (examples, statistics)
    of_sums: Callable[[FloatArray], FloatArray]  # (resamples, statistics) → (resamples,)


def bits_per_byte(scores: Sequence[TextScore]) -> Measured:
    """Return −log2 p of all answers over their UTF-8 bytes: comparable between tokenizers."""
    statistics = np.array([(-score.logprob / np.log(2), score.answer_bytes) for score in scores], dtype=np.float64)
    return Measured("bits_per_byte", "lower", statistics, lambda sums: sums[:, 0] / sums[:, 1])


def perplexity(scores: Sequence[TextScore]) -> Measured:
    """Return exp of the mean negative log-probability a token."""
    statistics = np.array([(-score.logprob, score.tokens) for score in scores], dtype=np.float64)
    return Measured("perplexity", "lower", statistics, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))


def bleu(answers: Sequence[str], references: Sequence[str]) -> Measured:
    """Return corpus BLEU, 0 to 100, with sacrebleu's defaults (13a, exponential smoothing)."""
    from sacrebleu.metrics import BLEU

    sentence = BLEU(effective_order=True)  # changes the sentence's score, which is not used, and not its counts
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        found = sentence.sentence_score(answer, [reference])
        rows.append([found.sys_len, found.ref_len, *found.counts, *found.totals])

    def of_sums(sums: FloatArray) -> FloatArray:
        return np.array(
            [
                BLEU.compute_bleu(
                    correct=[int(count) for count in row[2:6]],
                    total=[int(count) for count in row[6:10]],
                    sys_len=int(row[0]),
                    ref_len=int(row[1]),
                    smooth_method="exp",
                ).score
                for row in sums
            ]
        )

    return Measured("bleu", "higher", np.array(rows, dtype=np.float64), of_sums)


class UnicodeWords:
    """Words for ROUGE in any script; rouge_score's own tokenizer keeps only a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of `text`, in lower case."""
        return re.findall(r"\w+", text.lower())


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> Measured:
    """Return the mean ROUGE-L f-measure, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=UnicodeWords())
    rows = [
        (scorer.score(reference, answer)["rougeL"].fmeasure, 1.0)
        for answer, reference in zip(answers, references, strict=True)
    ]
    return Measured("rouge_l", "higher", np.array(rows, dtype=np.float64), lambda sums: sums[:, 0] / sums[:, 1])


def draw_counts(examples: int, *, seed: int, resamples: int = RESAMPLES) -> FloatArray:
    """Return how often each example is drawn in each resample (resamples, examples); the same for the same seed."""
    generator = np.random.default_rng([seed, examples])
    return generator.multinomial(examples, np.full(examples, 1 / examples), size=resamples).astype(np.float64)


def value_of(measured: Measured) -> float:
    """Return the metric over all examples."""
    return float(measured.of_sums(measured.statistics.sum(axis=0, keepdims=True))[0])


def score_of(measured: Measured, *, suite: Suite, subject: Subject, weights: Weights, seed: int) -> Score:
    """Return the metric with its interval and standard error."""
    values = _resampled(measured, seed=seed)
    low, high = np.percentile(values, (2.5, 97.5))
    return Score(
        suite=suite,
        subject=subject,
        weights=weights,
        metric=measured.metric,
        value=value_of(measured),
        low=float(low),
        high=float(high),
        standard_error=float(values.std(ddof=1)),
        examples=len(measured.statistics),
        better=measured.better,
    )


def comparison_of(
    candidate: Measured, baseline: Measured, *, suite: Suite, subject: Subject, weights: Weights, seed: int
) -> Comparison:
    """Return candidate minus baseline (`subject`) with the interval of a paired bootstrap."""
    differences = _resampled(candidate, seed=seed) - _resampled(baseline, seed=seed)
    low, high = np.percentile(differences, (2.5, 97.5))
    baseline_value = value_of(baseline)
    return Comparison(
        suite=suite,
        weights=weights,
        metric=candidate.metric,
        baseline=subject,
        baseline_value=baseline_value,
        difference=value_of(candidate) - baseline_value,
        low=float(low),
        high=float(high),
        better=candidate.better,
    )


def _resampled(measured: Measured, *, seed: int) -> FloatArray:
    return measured.of_sums(draw_counts(len(measured.statistics), seed=seed) @ measured.statistics)
