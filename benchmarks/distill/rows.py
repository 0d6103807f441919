"""`python -m benchmarks distill [--feedback FILE]`: costs on any text, and with real answers what is learnt.

The runs for what is learnt take three CPU-hours; they are kept under `var/bench-distill` and gone on with.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.distill import aligner, quality, steps
from benchmarks.distill.models import gemma_weights
from benchmarks.distill.quality import Comparison, Places, Scores
from benchmarks.distill.texts import read_texts
from benchmarks.report import ROOT, Row, save
from everswarm.schemas.dataset import Example
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.models import student_weights

RUNS = ROOT.parent / "var" / "bench-distill"
COST_TEXTS = 32
LEAST_GENERAL = 1.01  # of the base's bits per byte on general text
NOT_GIVEN = "needs --feedback: a file of real answers in the import format"


def run(feedback: Path | None, *, quick: bool = False, costs: bool = True) -> None:
    """Measure and save; `quick` takes 12 texts once and saves nothing, without `costs` only what is learnt."""
    student = student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder
    measured = _costs(feedback, student, quick=quick) if costs else []
    if quick:
        for row in measured:
            print(f"{row.metric}: {row.value} {row.unit} ({row.how})")
        return
    save("distill", [*measured, *_learnt(feedback, student)])


def _costs(feedback: Path | None, student: Path, *, quick: bool) -> list[Row]:
    count = 12 if quick else COST_TEXTS
    if feedback is None:
        examples, texts, answers = _shipped()[:count], "general texts that ship", [one.target for one in _shipped()]
    else:
        examples, texts = read_texts(feedback).student[:count], feedback.name
        answers = aligner.answers(feedback)
    with tempfile.TemporaryDirectory() as folder:
        measured = steps.measure(examples, student, Path(folder), rounds=1 if quick else steps.ROUNDS)
    found = steps.rows(measured, texts=f"{len(examples)} of {texts}")
    return [*found, *aligner.rows(answers, source=texts)]


def _shipped() -> list[Example]:
    from everswarm.training.evaluation import general_suite

    return [
        Example(
            id=text.id, user="everswarm", split="train", messages=text.messages, target=text.target, source="answer"
        )
        for text in general_suite()
    ]


def _learnt(feedback: Path | None, student: Path) -> list[Row]:
    names = {
        "same": "KD / SFT, bits per byte, same tokenizer",
        "gemma": "KD / SFT, bits per byte, Gemma → SmolLM2",
        "hindsight": "KD / SFT, bits per byte, hindsight",
    }
    if feedback is None:
        return [Row(metric, None, "x", None, None, "lower", NOT_GIVEN) for metric in names.values()]
    scores = quality.run_all(feedback, Places(student, gemma_weights(load_settings().models_dir), RUNS))
    found = [
        _row(metric, quality.compare(_held(scores, name), _held(scores, "sft")), scores, must=1.0)
        for name, metric in names.items()
    ]
    found.append(
        _row(
            "KD / ULD by rank, bits per byte, Gemma → SmolLM2",
            quality.compare(_held(scores, "gemma"), _held(scores, "uld")),
            scores,
            must=1.0,
        )
    )
    found += [
        _row(
            f"general text, {name} / base",
            quality.compare(_general(scores, name), _general(scores, "base")),
            scores,
            must=LEAST_GENERAL,
        )
        for name in names
    ]
    return found


def _row(metric: str, found: Comparison, scores: dict[str, Scores], *, must: float) -> Row:
    how = (
        f"[{found.low:.4f}, {found.high:.4f}], p(not lower) {found.p_not_lower:.4f}; three seeds, paired by item; "
        f"base {quality.bits_per_byte(scores['base'].held_out):.4f}, teacher of the first "
        f"{quality.bits_per_byte(scores['teacher'].held_out):.4f}"
    )
    return Row(metric, round(found.ratio, 4), "x", must, None, "lower", how)


def _held(scores: dict[str, Scores], name: str) -> list[NDArray[np.float64]]:
    return [score.held_out for score in quality.of_contender(scores, name)]


def _general(scores: dict[str, Scores], name: str) -> list[NDArray[np.float64]]:
    return [score.general for score in quality.of_contender(scores, name)]
