"""What a training step costs: ours from a cache, TRL SFT, and TRL GKD with the teacher online, on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.distill.arm import BATCH, Arm, Cost, Job, run
from benchmarks.distill.models import larger_teacher
from benchmarks.distill.texts import label_with_weights, write_examples
from benchmarks.report import Row
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import SoftTargets

ROUNDS = 2


class Measured(NamedTuple):
    """Medians over the rounds, by contender."""

    step_seconds: dict[str, float]  # CPU
    peak_bytes: dict[str, float]
    bytes_per_token: float  # of the cache
    how: str


def measure(examples: Sequence[Example], student: Path, folder: Path, *, rounds: int = ROUNDS) -> Measured:
    """Run each contender `rounds` times over `examples`, in turn."""
    written = write_examples(examples, folder / "examples.jsonl")
    targets = label_with_weights(examples, student, folder / "targets", hindsight=True)
    job = Job("kd", str(student), str(written), "", targets=str(targets))
    contenders: dict[str, tuple[Arm, str]] = {
        "kd": ("kd", ""),
        "sft": ("sft", ""),
        "gkd": ("gkd", str(student)),
        "gkd-larger": ("gkd", str(larger_teacher(student, folder / "larger"))),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, (arm, teacher) in contenders.items():
            costs[name].append(run(replace(job, arm=arm, teacher=teacher, out=str(folder / f"{name}-{number}"))))
    cache = SoftTargets.model_validate_json(targets.read_text(encoding="utf-8")).caches[0]
    return Measured(
        {name: median(cost.cpu_seconds / cost.steps for cost in found) for name, found in costs.items()},
        {name: median(cost.peak_bytes for cost in found) for name, found in costs.items()},
        sum(shard.size_bytes for shard in cache.shards) / cache.tokens,
        f"SmolLM2-135M, float32, LoRA r=16 on all linear layers, {len(examples)} texts, batch {BATCH}, one thread; "
        f"median of {rounds} rounds",
    )


def rows(measured: Measured, *, texts: str) -> list[Row]:
    """Return the rows of the costs; `texts` says which texts they were."""
    step, peak = measured.step_seconds, measured.peak_bytes
    how = f"{texts}; {measured.how}"
    return [
        Row(
            "KD-from-cache step / TRL SFT step", round(step["kd"] / step["sft"], 3), "x", 1.15, 1.05, "lower",
            f"{how}; {step['kd']:.2f} and {step['sft']:.2f} CPU-s a step",
        ),
        Row(
            "peak memory / TRL SFT", round(peak["kd"] / peak["sft"], 3), "x", 1.10, 1.00, "lower",
            f"resident, whole process; {peak['kd'] / 1e9:.2f} and {peak['sft'] / 1e9:.2f} GB",
        ),
        Row(
            "tokens per CPU-second / TRL GKD, teacher as large as the student", round(step["gkd"] / step["kd"], 2), "x",
            2.5, 4.0, "higher", f"GKD with lmbda 0, beta 0: {step['gkd']:.2f} CPU-s a step; labelling not counted",
        ),
        Row(
            "tokens per CPU-second / TRL GKD, teacher 2.7 times as large", round(step["gkd-larger"] / step["kd"], 2),
            "x", None, None, "higher",
            f"SmolLM2-360M's shape, random weights: {step['gkd-larger']:.2f} CPU-s a step; labelling not counted",
        ),
        Row(
            "cache bytes per token, k=20", round(measured.bytes_per_token, 1), "B", 90, 60, "lower",
            f"{texts}; parquet on disk, everything counted",
        ),
    ]  # fmt: skip
