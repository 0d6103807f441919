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
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.training.distillation.head import AnswerTargets, HeadLoss, LossOptions, blocks, head_loss
from everswarm.training.distillation.lessons import Lesson

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


TOKENS_AT_ONCE = 400  # padding counted: on a CPU it costs as much as text, and more rows do not make products faster


class DistillationTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Learns from soft targets and from the text, on answer tokens only; the weights are in the lessons."""

    def __init__(self, *, options: LossOptions, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.options = options

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Learn from one batch, part by part; return its loss."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        sums = torch.zeros(3, device=self.args.device)
        for part in inputs["parts"]:
            with self.compute_loss_context_manager():
                found = self._loss(model, self._prepare_inputs(part), count=inputs["answers"])
            self.accelerator.backward(found.loss)
            total += found.loss.detach()
            sums += found.sums
        if not torch.isfinite(total):
            raise StageFailedError(
                f"The loss is not a number at step {self.state.global_step + 1} of {self.state.max_steps}. Lower "
                f"learning_rate in the recipe (it is {self.args.learning_rate:g}), or look for a broken example."
            )
        counts = (inputs["answers"], inputs["compared"], inputs["chunks"])
        for name, of_all, count in zip(("cross_entropy", "kl", "chunk"), sums.tolist(), counts, strict=True):
            self._metrics["train"][name].append(of_all / max(count, 1))
        return total

    def _loss(self, model: Any, part: dict[str, Any], *, count: int) -> HeadLoss:
        """Return the loss of one part's answer tokens, divided by `count`, those of the whole batch."""
        causal = model.get_base_model()
        hidden = causal.base_model(
            input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False
        ).last_hidden_state
        head = causal.get_output_embeddings()
        return head_loss(
            hidden.flatten(0, 1)[part["positions"]],
            head.weight,
            getattr(head, "bias", None),
            AnswerTargets(**{name: part[name] for name in AnswerTargets._fields}),
            block_ends=part["block_ends"],
            options=self.options,
            count=count,
        )

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
            note += f", chunks {logs['chunk']:.3f}" if logs["chunk"] else ""
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
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT and TRL still use names that transformers 6 will drop
        trainer = DistillationTrainer(
            options=LossOptions(
                only_better=recipe.only_better,
                chunk_temperature=recipe.chunk_temperature,
                rollout_skew=recipe.rollout_skew,
            ),
            model=model,
            args=_arguments(recipe, seed=seed, out_dir=out_dir),
            # only numbers of lessons: the lessons themselves are at hand and need no copy in Arrow
            train_dataset=Dataset.from_dict({"lesson": list(range(len(lessons)))}),
            data_collator=lambda rows: batch_of([lessons[row["lesson"]] for row in rows], vocabulary=vocabulary),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[Reporter(on_progress, on_checkpoint)],
        )
    if any(part.requires_grad for part in trainer.model.get_base_model().get_output_embeddings().parameters()):
        raise StageFailedError(
            f"The recipe '{recipe.name}' trains the output head (target_modules {recipe.target_modules}), which the "
            "losses do not reach. Leave lm_head out, or choose all-linear, which does."
        )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the process that runs the stage
    trainer.processing_class = None  # or every checkpoint would hold a copy of the tokenizer
    return trainer


def batch_of(lessons: Sequence[Lesson], *, vocabulary: int, tokens_at_once: int = TOKENS_AT_ONCE) -> dict[str, Any]:
    """Return one batch in `parts` of texts of like length, with what its sums are divided by.

    A part has at most `tokens_at_once` tokens, padding counted, or one text.

    `answers`: its answer tokens; `compared`: those with a KL; `chunks`: what has a likelihood.
    """
    parts: list[list[Lesson]] = []
    for lesson in sorted(lessons, key=lambda lesson: -len(lesson.ids)):
        if parts and len(parts[-1][0].ids) * (len(parts[-1]) + 1) <= tokens_at_once:
            parts[-1].append(lesson)
        else:
            parts.append([lesson])
    return {
        "parts": [collate(part, vocabulary=vocabulary) for part in parts],
        "answers": sum(lesson.answer_tokens for lesson in lessons),
        "compared": sum(int((lesson.forward_weight + lesson.reverse_weight > 0).sum()) for lesson in lessons),
        "chunks": sum(len(lesson.chunk_logprob) for lesson in lessons),
    }


def collate(lessons: Sequence[Lesson], *, vocabulary: int) -> dict[str, Any]:
    """Return texts side by side: `input_ids` and `attention_mask` (batch, tokens), padded at the end, and the answers.

    The answers' tokens are in one row: `positions` (answers,) in the flattened batch, each one before the token that
    it predicts; the fields of `AnswerTargets`; `block_ends` for a head of `vocabulary` rows, which no chunk straddles.
    """
    width = max(len(lesson.ids) for lesson in lessons)
    input_ids = torch.zeros(len(lessons), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    positions: list[NDArray[np.int64]] = []
    ids: list[int] = []
    for row, lesson in enumerate(lessons):
        input_ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        attention_mask[row, : len(lesson.ids)] = 1
        positions.append(np.arange(row * width + lesson.prompt_tokens - 1, row * width + len(lesson.ids) - 1))
        ids += lesson.ids[lesson.prompt_tokens :]
    chunk = _renumbered(lessons)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "positions": torch.from_numpy(np.concatenate(positions)),
        "ids": torch.tensor(ids),
        "top_ids": _joined(lessons, "top_ids", pad=0).long(),
        "top_logprobs": _joined(lessons, "top_logprobs", pad=-np.inf),
        "tail_logprob": _joined(lessons, "tail_logprob"),
        "logprob": _joined(lessons, "logprob"),
        "text_weight": _joined(lessons, "text_weight"),
        "soft_share": _joined(lessons, "soft_share"),
        "forward_weight": _joined(lessons, "forward_weight"),
        "reverse_weight": _joined(lessons, "reverse_weight"),
        "text": torch.from_numpy(np.repeat(np.arange(len(lessons)), [lesson.answer_tokens for lesson in lessons])),
        "chunk": torch.from_numpy(chunk),
        "chunk_logprob": _joined(lessons, "chunk_logprob"),
        "chunk_weight": _joined(lessons, "chunk_weight"),
        "block_ends": blocks(chunk.tolist(), vocabulary=vocabulary),
    }


def _joined(lessons: Sequence[Lesson], name: str, pad: float | None = None) -> Tensor:
    """Return one array of all lessons in a row; with `pad`, of as many candidates as the widest has."""
    values = [getattr(lesson, name) for lesson in lessons]
    if pad is not None:
        k = max(value.shape[1] for value in values)
        values = [np.pad(value, ((0, 0), (0, k - value.shape[1])), constant_values=pad) for value in values]
    return torch.from_numpy(np.concatenate(values))


def _renumbered(lessons: Sequence[Lesson]) -> NDArray[np.int64]:
    """Return each token's chunk (answers,), numbered through the batch; -1 for none."""
    counts = [len(lesson.chunk_logprob) for lesson in lessons]
    before = np.cumsum([0, *counts[:-1]])
    return np.concatenate(
        [np.where(lesson.chunk >= 0, lesson.chunk + first, -1) for lesson, first in zip(lessons, before, strict=True)]
    )


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
