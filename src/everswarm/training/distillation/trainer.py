"""TRL's SFTTrainer with a loss of its own. Imported by `distill` alone: this import costs five CPU-seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.training.distillation.alignment import Lesson
from everswarm.training.distillation.losses import soft_target_loss

if TYPE_CHECKING:
    from torch import Tensor


class DistillationTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Learns from soft targets (`soft_target_weight`) and from the text (the rest), on answer tokens only."""

    def __init__(self, *, soft_target_weight: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.soft_target_weight = soft_target_weight

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean over the batch's answer tokens; where the teacher is silent, the text alone counts."""
        causal = model.get_base_model()
        hidden = causal.base_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).last_hidden_state
        # the vocabulary is the widest matrix of a small model: only the positions before an answer token go through it
        logits = causal.get_output_embeddings()(hidden.flatten(0, 1)[inputs["positions"]]).float()
        cross_entropy = functional.cross_entropy(logits, inputs["answer_ids"], reduction="none")
        taught = inputs["top_logprobs"][:, 0] > -torch.inf
        kl = torch.zeros_like(cross_entropy)
        kl[taught] = soft_target_loss(
            logits[taught], inputs["top_ids"][taught], inputs["top_logprobs"][taught], inputs["tail_logprob"][taught]
        )
        weight = self.soft_target_weight * taught
        loss = (weight * kl + (1 - weight) * cross_entropy).mean()
        if not torch.isfinite(loss):
            raise StageFailedError(
                f"The loss is not a number at step {self.state.global_step + 1} of {self.state.max_steps}. Lower "
                f"learning_rate in the recipe (it is {self.args.learning_rate:g}), or look for a broken example."
            )
        self._metrics["train"]["cross_entropy"].append(cross_entropy.mean().item())
        self._metrics["train"]["kl"].append(kl.sum().item() / max(int(taught.sum()), 1))
        return (loss, None) if return_outputs else loss

    def create_model_card(self, *_arguments: Any, **_named: Any) -> None:
        """Write none: a checkpoint is for resuming, not for reading."""


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is followed without types
    """Tells the stage of steps and checkpoints."""

    def __init__(
        self, on_progress: Callable[[int, int, str], None], on_checkpoint: Callable[[Path, int], None]
    ) -> None:
        self.on_progress = on_progress
        self.on_checkpoint = on_checkpoint

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_named: Any) -> None:
        """Say the step's loss."""
        if logs and "cross_entropy" in logs:
            note = f"loss {logs['loss']:.3f}, cross-entropy {logs['cross_entropy']:.3f}, KL {logs['kl']:.3f}"
            self.on_progress(state.global_step, state.max_steps, note)

    def on_save(self, args: Any, state: Any, control: Any, **_named: Any) -> None:
        """Hand over the checkpoint."""
        self.on_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Sequence[Lesson],
    *,
    recipe: Recipe,
    seed: int,
    out_dir: Path,
    on_progress: Callable[[int, int, str], None],
    on_checkpoint: Callable[[Path, int], None],
) -> DistillationTrainer:
    """Return a trainer of `recipe` on `lessons`; the order of the examples is that of a plain TRL run of this seed."""
    lora = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT and TRL still use names that transformers 6 will drop
        trainer = DistillationTrainer(
            soft_target_weight=recipe.soft_target_weight,
            model=model,
            args=_arguments(recipe, seed=seed, out_dir=out_dir),
            # only numbers of lessons: the lessons themselves are at hand and need no copy in Arrow
            train_dataset=Dataset.from_dict({"lesson": list(range(len(lessons)))}),
            data_collator=lambda rows: collate([lessons[row["lesson"]] for row in rows]),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Reporter(on_progress, on_checkpoint)],
        )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the process that runs the stage
    trainer.processing_class = None  # or every checkpoint would hold a copy of the tokenizer
    return trainer


def collate(lessons: Sequence[Lesson]) -> dict[str, Tensor]:
    """Return one batch: `input_ids` and `attention_mask` (batch, tokens), padded at the end, and the answers' tokens.

    The answers' tokens are in one row: `positions` (answers,) in the flattened batch, each one before the token that
    it predicts; `answer_ids` (answers,); `top_ids`, `top_logprobs` (answers, k); `tail_logprob` (answers,).
    """
    width = max(len(lesson.ids) for lesson in lessons)
    input_ids = torch.zeros(len(lessons), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    positions: list[int] = []
    answer_ids: list[int] = []
    for row, lesson in enumerate(lessons):
        input_ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        attention_mask[row, : len(lesson.ids)] = 1
        positions += range(row * width + lesson.prompt_tokens - 1, row * width + len(lesson.ids) - 1)
        answer_ids += lesson.ids[lesson.prompt_tokens :]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "positions": torch.tensor(positions),
        "answer_ids": torch.tensor(answer_ids),
        "top_ids": torch.from_numpy(np.concatenate([lesson.top_ids for lesson in lessons])),
        "top_logprobs": torch.from_numpy(np.concatenate([lesson.top_logprobs for lesson in lessons])),
        "tail_logprob": torch.from_numpy(np.concatenate([lesson.tail_logprob for lesson in lessons])),
    }


def _arguments(recipe: Recipe, *, seed: int, out_dir: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(out_dir),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.scheduler,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share of all steps
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,  # the newer name of gradient_checkpointing
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="steps",
        save_steps=recipe.checkpoint_every_steps,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
