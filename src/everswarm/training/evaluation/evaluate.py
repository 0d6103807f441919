"""The evaluation of one adapter: every suite, every subject, both kinds of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from everswarm.errors import BadRequestError
from everswarm.schemas.evaluation import Answer, Comparison, Score, Subject, Suite, Weights
from everswarm.training.evaluation.findings import (
    AdapterFiles,
    Findings,
    OnProgress,
    Steps,
    find_in_torch,
    find_quantised,
    make_plan,
)
from everswarm.training.evaluation.metrics import (
    Measured,
    bits_per_byte,
    bleu,
    comparison_of,
    perplexity,
    rouge_l,
    score_of,
)
from everswarm.training.evaluation.texts import QuestionAnswer, load_tokenizer


class EvaluationPieces(NamedTuple):
    """What `Evaluation` needs beside the digests."""

    scores: list[Score]
    comparisons: list[Comparison]
    answers: list[Answer]
    engines: dict[Weights, str]


def evaluate(  # noqa: PLR0913 - the one place where all files of a cycle meet
    *,
    test: Sequence[QuestionAnswer],
    general: Sequence[QuestionAnswer],
    base_hf: Path,
    base_gguf: Path,
    candidate: AdapterFiles,
    incumbent: AdapterFiles | None = None,
    work_dir: Path,
    answer_limit: int,
    max_answer_tokens: int = 96,
    seed: int,
    threads: int = 1,
    on_progress: OnProgress = lambda _done, _total, _note: None,
) -> EvaluationPieces:
    """Score base, candidate and incumbent on `test` and `general`, and let them answer the first test questions.

    `work_dir` takes short-lived files of the scoring process.

    Raises:
        BadRequestError: a suite is empty.
        LlamaError: a GGUF file is not what it should be.
        StageFailedError: a score is not a number, or the scoring process was killed.
    """
    if not test or not general:
        raise BadRequestError(
            "An evaluation needs at least one test example and one general example; a suite is empty."
        )
    adapters: dict[Subject, AdapterFiles] = {"candidate": candidate}
    if incumbent is not None:
        adapters["incumbent"] = incumbent
    plan = make_plan(
        [*test, *general],
        questions=min(answer_limit, len(test)),
        tokenizer=load_tokenizer(base_hf),
        max_answer_tokens=max_answer_tokens,
        threads=threads,
    )
    steps = Steps(total=2 * (1 + len(adapters)) * len(plan.texts), on_progress=on_progress)
    found: dict[Weights, Findings] = {
        "hf": find_in_torch(plan, base_hf, adapters, steps),
        "gguf": find_quantised(plan, base_gguf, adapters, steps, work_dir=work_dir),
    }
    references = [example.target for example in test[: plan.questions]]
    measured = {weights: _measure(findings, len(test), references) for weights, findings in found.items()}
    return EvaluationPieces(
        scores=_scores(measured, seed=seed),
        comparisons=_comparisons(measured, seed=seed),
        answers=_answers(test[: plan.questions], found),
        engines={weights: findings.engine for weights, findings in found.items()},
    )


def _measure(
    findings: Findings, test_count: int, references: Sequence[str]
) -> dict[tuple[Suite, Subject], list[Measured]]:
    measured: dict[tuple[Suite, Subject], list[Measured]] = {}
    for subject, scores in findings.scores.items():
        test, general = scores[:test_count], scores[test_count:]
        measured["test", subject] = [bits_per_byte(test), perplexity(test)]
        measured["general", subject] = [bits_per_byte(general), perplexity(general)]
        if references:
            answers = findings.answers[subject]
            measured["test", subject] += [bleu(answers, references), rouge_l(answers, references)]
    return measured


_Measurements = Mapping[Weights, Mapping[tuple[Suite, Subject], Sequence[Measured]]]


def _scores(measured: _Measurements, *, seed: int) -> list[Score]:
    return [
        score_of(metric, suite=suite, subject=subject, weights=weights, seed=seed)
        for weights, by_subject in measured.items()
        for (suite, subject), metrics in by_subject.items()
        for metric in metrics
    ]


def _comparisons(measured: _Measurements, *, seed: int) -> list[Comparison]:
    return [
        comparison_of(candidate, baseline, suite=suite, subject=subject, weights=weights, seed=seed)
        for weights, by_subject in measured.items()
        for (suite, subject), metrics in by_subject.items()
        if subject != "candidate"
        for candidate, baseline in zip(by_subject[suite, "candidate"], metrics, strict=True)
    ]


def _answers(questions: Sequence[QuestionAnswer], found: Mapping[Weights, Findings]) -> list[Answer]:
    return [
        Answer(
            id=example.id,
            question=example.messages[-1].content,
            reference=example.target,
            answers={
                f"{subject}/{weights}": answers[index]
                for weights, findings in found.items()
                for subject, answers in findings.answers.items()
            },
        )
        for index, example in enumerate(questions)
    ]
