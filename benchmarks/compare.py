"""Plain TRL SFT on the very examples of a cycle, and both adapters on the cycle's held-out questions, in one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everswarm.schemas.adapter import Adapter
from everswarm.schemas.dataset import Dataset
from everswarm.server.database import Database
from everswarm.server.registry import ArtifactStore
from everswarm.settings import Settings, load_settings

SUBJECTS = ("base", "sft", "candidate")


def held_out(report: dict[str, Any], feedback: Path) -> dict[str, float]:
    """Return bits per byte of each subject on each suite, and what both trainings cost.

    Keys: `<subject>_<suite>` for the suites test, general (shipped) and, where the file lies beside the feedback,
    instructions; `test_examples`, `sft_cpu_seconds`, `candidate_cpu_seconds`.
    """
    from everswarm.training.curation import read_examples
    from everswarm.training.evaluation import general_suite
    from everswarm.training.models import student_weights

    settings = load_settings(home=Path(report["home"]))
    stages = {stage["stage"]: stage for stage in report["cycle"]["stages"]}
    dataset = Dataset.model_validate(stages["curate"]["result"])
    adapter = Adapter.model_validate(stages["distill"]["result"])
    weights = student_weights(adapter.student, settings.models_dir).folder
    files = _Files(settings)
    sft = settings.home / "yardstick"
    _train_yardstick(files.path(dataset.data.sha256), weights, sft)
    candidate = settings.home / "candidate"
    candidate.mkdir(exist_ok=True)
    (candidate / "adapter_model.safetensors").write_bytes(files.path(adapter.weights.sha256).read_bytes())
    (candidate / "adapter_config.json").write_bytes(files.path(adapter.config.sha256).read_bytes())
    suites: dict[str, Sequence[Any]] = {
        "test": read_examples(files.path(dataset.data.sha256), split="test"),
        "general": general_suite(),
        "instructions": instructions(feedback.parent / "feedback-instructions.jsonl"),
    }
    found = _bits_per_byte(weights, {"sft": sft, "candidate": candidate}, suites)
    found["test_examples"] = len(suites["test"])
    found["sft_cpu_seconds"] = json.loads((sft / "cost.json").read_text())["cpu_seconds"]
    found["candidate_cpu_seconds"] = sum(stages[name]["spent"]["cpu_seconds"] for name in ("label", "distill"))
    return found


class _Files:
    """The artifacts of a home, as local files."""

    def __init__(self, settings: Settings) -> None:
        self.store = ArtifactStore(
            settings.artifacts_root, Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
        )

    def path(self, sha256: str) -> Path:
        found = self.store.local_path(sha256)
        if found is None:
            raise SystemExit(f"the artifact {sha256} is not in this home")
        return found


def _train_yardstick(dataset: Path, weights: Path, out: Path) -> None:
    if (out / "cost.json").exists():  # of an earlier measurement on this home, which has one dataset
        return
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.yardstick", str(dataset), str(weights), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=sys.stderr)


def instructions(path: Path) -> Sequence[Any]:
    """Real general instructions that no training saw; none where the file is not there."""
    from everswarm.schemas.interaction import JudgedInteraction
    from everswarm.training.evaluation import GeneralExample

    if not path.exists():
        return []
    return [
        GeneralExample(id=record.id, messages=record.messages, target=record.correction)
        for line in path.read_text(encoding="utf-8").splitlines()
        if (record := JudgedInteraction.model_validate_json(line)).correction
    ]


def _bits_per_byte(weights: Path, adapters: dict[str, Path], suites: dict[str, Sequence[Any]]) -> dict[str, float]:
    from everswarm.training.evaluation.hf_score import HfModel
    from everswarm.training.evaluation.metrics import bits_per_byte
    from everswarm.training.evaluation.texts import load_tokenizer, tokenize

    model, tokenizer = HfModel(weights, adapters=adapters, threads=1), load_tokenizer(weights)
    found: dict[str, float] = {}
    for suite, examples in suites.items():
        texts = [tokenize(example, tokenizer) for example in examples]
        for subject in SUBJECTS if texts else ():
            with model.use(None if subject == "base" else subject):
                measured = bits_per_byte(model.score(texts))
            found[f"{subject}_{suite}"] = float(measured.of_sums(measured.statistics.sum(axis=0, keepdims=True))[0])
    return found
