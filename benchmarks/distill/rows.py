"""`python -m benchmarks distill [--feedback FILE]`: costs on any text, and with real answers what is learnt.

The runs for what is learnt take three CPU-hours; they are kept under `var/bench-distill` and gone on with.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.distill import aligner, quality, steps
from benchmarks.distill.models import gemma_weights
from benchmarks.distill.picture import Arm, draw
from benchmarks.distill.quality import Places, Scores
from benchmarks.distill.texts import read_texts
from benchmarks.report import ROOT, Row, save
from everswarm.schemas.dataset import Example
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.models import student_weights

RUNS = ROOT.parent / "var" / "bench-distill"
COST_TEXTS = 24
PICTURE = ROOT.parent / "docs" / "pictures" / "distillation.svg"
CURVE_SEED = 1
LEAST_GENERAL = 1.01  # of the base's bits per byte on general text
NOT_WORSE = 1.01  # the margin of the gate that decides about releases
AGAINST_SFT = (  # name of the contender, metric in bits per byte, must, reach
    ("same", "KD / SFT, same tokenizer, tuned teacher", 1.0, None),
    ("gemma", "KD / SFT, Gemma → SmolLM2", NOT_WORSE, 1.0),
    ("hindsight", "KD / SFT, hindsight, all else equal", 1.0, None),
    ("cycle", "KD / SFT, hindsight, the recipe of a cycle", 1.0, None),
)
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
    if feedback is None:
        return [Row(metric, None, "x", must, reach, "lower", NOT_GIVEN) for _, metric, must, reach in AGAINST_SFT]
    places = Places(student, gemma_weights(load_settings().models_dir), RUNS)
    scores = quality.run_all(feedback, places)
    found = [
        _row(metric, _held(scores, name), _held(scores, "sft"), scores, must=must, reach=reach)
        for name, metric, must, reach in AGAINST_SFT
    ]
    same_seeds = _held(scores, "gemma")[: len(_held(scores, "uld"))]
    found.append(
        _row(
            "KD / ULD by rank (TRL GOLD), Gemma → SmolLM2", same_seeds, _held(scores, "uld"), scores, must=1.0,
        )
    )  # fmt: skip
    for name, metric, *_ in AGAINST_SFT:
        of_arm = f"general text / base: {metric.removeprefix('KD / SFT, ')}"
        found.append(
            _row(of_arm, _general(scores, name), _general(scores, "base"), scores, must=LEAST_GENERAL, held_out=False)
        )
    _draw(scores)
    return found


def _draw(scores: dict[str, Scores]) -> None:
    labels = {
        "sft": "TRL SFT",
        "same": "KD, tuned teacher",
        "hindsight": "KD, hindsight",
        "gemma": "KD, Gemma",
        "uld": "ULD, Gemma",
        "cycle": "a cycle's recipe",
    }
    arms = []
    for name, label in labels.items():
        bits = [quality.bits_per_byte(items) for items in _held(scores, name)]
        # the loss of ULD is no cross-entropy, and another rate is another curve
        cost = RUNS / f"{name}-{CURVE_SEED}" / "cost.json"
        compares = name not in {"uld", "cycle"} and cost.exists()
        curve = json.loads(cost.read_text(encoding="utf-8"))["losses"] if compares else []
        arms.append(Arm(label, bits, curve))
    marks = {name: quality.bits_per_byte(scores[name].held_out) for name in ("base", "teacher")}
    draw(arms, marks=marks, title="150 answers read once by SmolLM2-135M, in six ways", path=PICTURE)


def _row(
    metric: str,
    arm: list[NDArray[np.float64]],
    other: list[NDArray[np.float64]],
    scores: dict[str, Scores],
    *,
    must: float,
    reach: float | None = None,
    held_out: bool = True,
) -> Row:
    found = quality.compare(arm, other)
    part = "held_out" if held_out else "general"
    base, teacher = (quality.bits_per_byte(getattr(scores[name], part)) for name in ("base", "teacher"))
    bits = ", ".join(f"{quality.bits_per_byte(items):.4f}" for items in arm)
    how = (
        f"[{found.low:.4f}, {found.high:.4f}], p(not lower) {found.p_not_lower:.4f}, paired over {len(arm[0])} texts; "
        f"seeds: {bits} bits per byte; base {base:.4f}, tuned teacher {teacher:.4f}"
    )
    return Row(metric, round(found.ratio, 4), "x", must, reach, "lower", how)


def _held(scores: dict[str, Scores], name: str) -> list[NDArray[np.float64]]:
    return [score.held_out for score in quality.of_contender(scores, name)]


def _general(scores: dict[str, Scores], name: str) -> list[NDArray[np.float64]]:
    return [score.general for score in quality.of_contender(scores, name)]
