"""One training run in a process of its own: `python -m benchmarks.distill.arm JOB.json`; `out/cost.json` has its cost.

`sft` is TRL's SFTTrainer as its documentation shows it; `kd` is ours from a cache; `gkd` is TRL's GKDTrainer with the
teacher online and no sampling (lmbda 0); `uld` is TRL's GOLDTrainer with the teacher online and rank-sorted ULD.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from everswarm.schemas.adapter import Recipe
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import SoftTargets

BATCH = 4  # examples a step, in every arm
MAX_TOKENS = 1024
Arm = Literal["sft", "kd", "gkd", "uld"]


@dataclass(frozen=True)
class Job:
    """What one run learns from, and how. Paths are strings, so that a job is JSON."""

    arm: Arm
    student: str  # folder of weights
    examples: str  # JSON lines of `Example`, in the order of the dataset
    out: str  # the adapter and cost.json go there
    seed: int = 0
    learning_rate: float = 2e-4
    target_modules: list[str] | str = "all-linear"
    steps: int = -1  # of so many first examples; -1: one epoch of all
    teacher: str = ""  # folder of weights, for gkd and uld
    targets: str = ""  # JSON of `SoftTargets`, for kd; its shards lie beside it, named by their digests
    recipe: dict[str, Any] | None = None  # fields of `Recipe` that kd sets differently


@dataclass
class Cost:
    """CPU seconds from the end of the first step to the end of the last, without loading."""

    cpu_seconds: float
    steps: int  # those counted: one less than were made
    peak_bytes: int  # resident, of the whole process
    losses: list[float]  # of each step: nats of the text a token; of uld and gkd, their own loss


def run(job: Job) -> Cost:
    """Run `job` in a child process with one thread and return what it cost."""
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.distill.arm", str(out / "job.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (out / "log.txt").open("w") as log:
        done = subprocess.run(command, check=False, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit(f"{job.arm} failed; its log is {out / 'log.txt'}")
    return Cost(**json.loads((out / "cost.json").read_text(encoding="utf-8")))


def main(job_path: Path) -> None:
    """Run the job in this process."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    job = Job(**json.loads(job_path.read_text(encoding="utf-8")))
    lines = Path(job.examples).read_text(encoding="utf-8").splitlines()
    examples = [Example.model_validate_json(line) for line in lines]
    if job.steps > 0:
        examples = examples[: job.steps * BATCH]
    clock = _Clock()
    (_kd if job.arm == "kd" else _trl)(job, examples, clock.step)
    (Path(job.out) / "cost.json").write_text(json.dumps(asdict(clock.cost())), encoding="utf-8")


class _Clock:
    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def step(self, loss: float) -> None:
        self.ends.append(time.process_time())
        self.losses.append(loss)

    def cost(self) -> Cost:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Cost(self.ends[-1] - self.ends[0], len(self.ends) - 1, peak, self.losses)


def recipe_of(job: Job) -> Recipe:
    """Return the job's recipe: the yardstick's numbers, and what the job sets differently."""
    yardstick = {
        "name": "benchmark",
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "target_modules": job.target_modules,
        "learning_rate": job.learning_rate,
        "batch_size": BATCH,
        "epochs": 1,
        "max_tokens": MAX_TOKENS,
        "soft_target_weight": 0.7,
        "checkpoint_every_steps": 100_000,
    }
    return Recipe.model_validate(yardstick | (job.recipe or {}))


def _kd(job: Job, examples: Sequence[Example], on_step: Callable[[float], None]) -> None:
    from everswarm.training.distillation import distill

    targets = SoftTargets.model_validate_json(Path(job.targets).read_text(encoding="utf-8"))
    shards = [Path(job.targets).parent / shard.sha256 for cache in targets.caches for shard in cache.shards]
    done = distill(
        examples=examples,
        weights=Path(job.student),
        targets=targets,
        shards=shards,
        recipe=recipe_of(job),
        seed=job.seed,
        student="benchmark/student",
        work_dir=Path(job.out),
        on_progress=lambda _done, _total, note: on_step(float(note.split("cross-entropy ")[1].split(",")[0])),
    )
    for path in done.adapter_dir.iterdir():
        path.replace(Path(job.out) / path.name)


def _trl(job: Job, examples: Sequence[Example], on_step: Callable[[float], None]) -> None:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]  # transformers is followed without types
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_named: Any) -> None:
            if logs and "loss" in logs:
                on_step(float(logs["loss"]))

    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=job.target_modules, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
    make = {"sft": _sft, "gkd": _gkd, "uld": _uld}[job.arm]
    trainer = make(job, model, AutoTokenizer.from_pretrained(job.student), examples, lora)
    trainer.add_callback(Steps())
    trainer.train()
    trainer.model.save_pretrained(job.out)


def _arguments(job: Job) -> dict[str, Any]:
    return {
        "output_dir": str(Path(job.out) / "run"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "bf16": False,
        "use_cpu": True,
        "activation_checkpointing": False,
        "max_length": MAX_TOKENS,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "seed": job.seed,
        "data_seed": job.seed,
        "disable_tqdm": True,
    }


def _sft(job: Job, model: Any, tokenizer: Any, examples: Sequence[Example], lora: Any) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "prompt": [message.model_dump() for message in example.messages],
            "completion": [{"role": "assistant", "content": example.target}],
        }
        for example in examples
    ]
    return SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=SFTConfig(**_arguments(job), completion_only_loss=True),
        peft_config=lora,
    )


def _conversations(examples: Sequence[Example]) -> Any:
    from datasets import Dataset

    rows = [
        [*(message.model_dump() for message in example.messages), {"role": "assistant", "content": example.target}]
        for example in examples
    ]
    return Dataset.from_dict({"messages": rows})


def _gkd(job: Job, model: Any, tokenizer: Any, examples: Sequence[Example], lora: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    return GKDTrainer(
        model=model,
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=_conversations(examples),
        args=GKDConfig(**_arguments(job), lmbda=0.0, beta=0.0),
        peft_config=lora,
    )


def _uld(job: Job, model: Any, tokenizer: Any, examples: Sequence[Example], lora: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    return GOLDTrainer(
        model=model,
        teacher_model=AutoModelForCausalLM.from_pretrained(job.teacher, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=_conversations(examples),
        args=GOLDConfig(
            **_arguments(job),
            lmbda=0.0,
            use_uld_loss=True,
            use_extended_uld=False,  # TRL's alignment by bytes refuses a SentencePiece teacher
            teacher_tokenizer_name_or_path=job.teacher,
        ),
        peft_config=lora,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
