"""Scores with intervals, always against a baseline."""

from __future__ import annotations

from typing import Literal

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256

Subject = Literal["base", "incumbent", "candidate"]
Weights = Literal["hf", "gguf"]
Suite = Literal["test", "general"]


class Score(Record):
    """One number with its bootstrap interval over examples (95 %)."""

    suite: Suite
    subject: Subject
    weights: Weights
    metric: str  # bits_per_byte, perplexity, bleu, rouge_l
    value: float
    low: float
    high: float
    standard_error: float
    examples: int
    better: Literal["lower", "higher"]


class Comparison(Record):
    """Candidate minus baseline on the same examples: a paired bootstrap, 95 %."""

    suite: Suite
    weights: Weights
    metric: str
    baseline: Subject
    baseline_value: float
    difference: float
    low: float
    high: float
    better: Literal["lower", "higher"]


class Answer(Record):
    """What each model said to one held-out question."""

    id: str
    question: str
    reference: str
    answers: dict[str, str]  # "base/gguf" → text


class Evaluation(Record):
    """Everything that the promotion gate may look at, and nothing else."""

    schema_version: Literal[1] = 1
    dataset: Sha256
    adapter: Sha256  # of the PEFT weights
    adapter_gguf: Sha256
    base_gguf: Sha256
    incumbent_gguf: Sha256 | None  # the adapter in use, if any
    engines: dict[Weights, str]  # such as {"gguf": "llama.cpp in xllamacpp 2026.10.11549, 64-token chunks"}
    scores: list[Score]
    comparisons: list[Comparison]
    answers: list[Answer]


class GateCheck(Record):
    """One condition of the gate."""

    name: str
    passed: bool
    found: str
    limit: str


class PromotionDecision(Record):
    """Whether a candidate may be released, and why."""

    promote: bool
    reason: str
    checks: list[GateCheck]


class Incumbent(Record):
    """The release in use when a cycle starts, which the candidate must not be worse than."""

    release_id: str
    adapter_gguf: Artifact
    weights: Artifact
    config: Artifact
    base_gguf: Artifact
