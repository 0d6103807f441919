"""What is learnt: paired runs on real answers, in bits per byte of answers that no run saw.

Every arm sees the same 150 texts in the same order once, batch 4, LoRA r=16 on all linear layers, learning rate 2e-4
with a cosine, but for `cycle`, which has the numbers of a cycle's own recipe. An item's figure is its mean over the
seeds; intervals are of 10,000 resamples of items.
Runs are kept in a folder and not made again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.distill.arm import Arm, Job, run
from benchmarks.distill.texts import Texts, label_with_weights, read_texts, write_examples
from everswarm.schemas.dataset import Example
from everswarm.training.recipes import load_recipe

SEEDS = (0, 1, 2)
RESAMPLES = 10_000
TEACHER_RATE = 1e-3  # of the teacher's fine-tuning, so that it knows something


@dataclass(frozen=True)
class Contender:
    """One arm of the comparison: how it is trained, and whose soft targets it learns from."""

    name: str
    arm: Arm
    targets: str = ""  # name of the labels, for kd
    recipe: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS


class Comparison(NamedTuple):
    """Bits per byte of one arm over those of another, on the same items."""

    ratio: float
    low: float  # 95 % interval
    high: float
    p_not_lower: float  # share of the resamples in which the arm is not lower


CONTENDERS = (
    Contender("sft", "sft"),
    Contender("same", "kd", "same"),
    Contender("hindsight", "kd", "hindsight"),
    Contender("gemma", "kd", "gemma"),
    Contender("cycle", "kd", "hindsight", load_recipe("seed").model_dump(exclude={"name", "checkpoint_every_steps"})),
    Contender("uld", "uld", seeds=(0,)),  # 25 CPU-minutes each
)


@dataclass(frozen=True)
class Places:
    """Where the models and the runs are."""

    student: Path  # folder of SmolLM2-135M-Instruct's weights
    gemma: Path  # folder of Gemma-3-270M's weights
    runs: Path  # everything that is made

    @property
    def teacher(self) -> Path:
        """Return the folder of the student fine-tuned on 800 questions."""
        return self.runs / "teacher" / "hf"


def run_all(feedback: Path, places: Places, contenders: Sequence[Contender] = CONTENDERS) -> dict[str, Scores]:
    """Make what is missing and return the scores of each contender and of the base, by name."""
    texts = read_texts(feedback)
    examples = write_examples(texts.student, places.runs / "student.jsonl")
    make_teacher(texts, places)
    teachers: dict[str, tuple[Path, dict[str, Any]]] = {
        "same": (places.teacher, {"hindsight": False}),
        "hindsight": (places.student, {"hindsight": True}),
        "gemma": (places.gemma, {"hindsight": False, "template": "plain"}),
    }
    scores = {"base": _score(None, texts, places), "teacher": _score(places.teacher.parent, texts, places)}
    for contender in contenders:
        targets = ""
        if contender.targets:
            folder, asked = teachers[contender.targets]
            labelled = places.runs / f"targets-{contender.targets}"
            targets = str(label_with_weights(texts.student, folder, labelled, **asked))
        for seed in contender.seeds:
            out = places.runs / f"{contender.name}-{seed}"
            if not (out / "cost.json").exists():
                run(
                    Job(
                        arm=contender.arm,
                        student=str(places.student),
                        examples=str(examples),
                        out=str(out),
                        seed=seed,
                        teacher=str(places.gemma),
                        targets=targets,
                        recipe=contender.recipe,
                    )
                )
            scores[f"{contender.name}-{seed}"] = _score(out, texts, places)
    return scores


def make_teacher(texts: Texts, places: Places) -> None:
    """Fine-tune the student on the teacher's questions and fold the adapter into the weights, once."""
    if places.teacher.exists():
        return
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = places.teacher.parent
    examples = write_examples(texts.teacher, places.runs / "teacher.jsonl")
    run(Job("sft", str(places.student), str(examples), str(out), learning_rate=TEACHER_RATE))
    base = AutoModelForCausalLM.from_pretrained(places.student)
    PeftModel.from_pretrained(base, str(out)).merge_and_unload().save_pretrained(places.teacher)
    AutoTokenizer.from_pretrained(places.student).save_pretrained(places.teacher)


class Scores(NamedTuple):
    """Nats and bytes of each item's answer, on the held-out questions and on general instructions."""

    held_out: NDArray[np.float64]  # (items, 2)
    general: NDArray[np.float64]  # (items, 2)


def bits_per_byte(items: NDArray[np.float64]) -> float:
    """Return the bits per byte of items (nats, bytes)."""
    nats, size = items.sum(axis=0)
    return float(nats / size / np.log(2))


def compare(arm: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]]) -> Comparison:
    """Compare two arms, each a list of items (items, 2) a seed, by paired bootstrap over the items."""
    ours, theirs = (np.mean([items[:, 0] for items in seeds], axis=0) for seeds in (arm, other))
    picks = np.random.default_rng(0).integers(0, len(ours), size=(RESAMPLES, len(ours)))
    ratios = ours[picks].sum(axis=1) / theirs[picks].sum(axis=1)  # the bytes are the same
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Comparison(float(ours.sum() / theirs.sum()), float(low), float(high), float((ratios >= 1).mean()))


def of_contender(scores: dict[str, Scores], name: str) -> list[Scores]:
    """Return the scores of all seeds of a contender; of the base, its one."""
    if name in scores:
        return [scores[name]]
    return [scores[f"{name}-{seed}"] for seed in SEEDS if f"{name}-{seed}" in scores]


def _score(adapter: Path | None, texts: Texts, places: Places) -> Scores:
    """Score the base or one adapter; what was scored before is read."""
    kept = (adapter or places.runs / "base") / "scores.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        found = {
            name: _items(adapter, part, places) for name, part in texts._asdict().items() if name in Scores._fields
        }
        kept.write_text(json.dumps(found), encoding="utf-8")
    told = json.loads(kept.read_text(encoding="utf-8"))
    return Scores(np.array(told["held_out"]), np.array(told["general"]))


def _items(adapter: Path | None, examples: Sequence[Example], places: Places) -> list[tuple[float, int]]:
    from everswarm.training.evaluation.hf_score import HfModel
    from everswarm.training.evaluation.texts import load_tokenizer, tokenize

    merged = adapter is not None and not (adapter / "adapter_model.safetensors").exists()
    weights = places.teacher if merged else places.student
    adapters = {} if adapter is None or merged else {"arm": adapter}
    model, tokenizer = HfModel(weights, adapters=adapters, threads=1), load_tokenizer(places.student)
    found = model.score([tokenize(example, tokenizer) for example in examples])
    return [(-score.logprob, score.answer_bytes) for score in found]
