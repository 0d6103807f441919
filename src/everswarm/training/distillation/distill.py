"""The student's run: LoRA with TRL on cached soft targets and on the text itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe, TrainingCurvePoint
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import SoftTargets
from everswarm.settings import TeacherSettings
from everswarm.training.distillation.lessons import Lesson, LessonMaker
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import read_shards
from everswarm.training.models import load_student

CURVE_POINTS = 200  # a longer run keeps every second, third, … step of its curve

ReportProgress = Callable[[int, int, str], None]  # done, total, note


class Distilled(NamedTuple):
    """A trained student."""

    adapter_dir: Path  # adapter_model.safetensors and adapter_config.json
    curve: list[TrainingCurvePoint]
    steps: int
    trained_tokens: int
    trainable_parameters: int


def distill(  # noqa: PLR0913  # the door of a stage: everything that it needs, by name
    *,
    examples: Sequence[Example],
    weights: Path,
    targets: SoftTargets,
    shards: Sequence[Path],
    recipe: Recipe,
    seed: int,
    student: str,
    work_dir: Path,
    resume_from: Path | None = None,
    threads: int = 1,
    on_progress: ReportProgress | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
) -> Distilled:
    """Train an adapter for `student` on the training split of `examples`.

    Args:
        examples: with their splits; only `train` is learnt from.
        weights: folder with the student's weights and tokenizer.
        targets: the record of the soft targets, made for these examples.
        shards: its files, in order.
        recipe: the numbers of the run.
        seed: of the adapter's first weights, the order of the examples and the dropout.
        student: full name of the model; goes into the adapter's configuration.
        work_dir: for checkpoints and the adapter.
        resume_from: a checkpoint folder of the same run; the result is that of a run that was never cut.
        threads: of torch.
        on_progress: called after each step with the loss in words.
        on_checkpoint: called with each checkpoint's folder, which is valid until it returns, and its step.

    Raises:
        StageFailedError: there is nothing to learn from, the soft targets are of another dataset, or the loss is not
            a number.
    """
    from everswarm.training.distillation.head import check_head
    from everswarm.training.distillation.trainer import build_trainer

    model, tokenizer = load_student(weights, threads=threads)
    check_head(model, name=student)
    rows = int(model.get_output_embeddings().weight.shape[0])
    maker = LessonMaker(tokenizer, recipe, vocabulary=rows)
    everyone = any("target" in cache.texts for cache in targets.caches)
    lessons = _lessons(examples, _scored(targets, shards), maker, everyone=everyone)
    trainer = build_trainer(
        model,
        tokenizer,
        lessons,
        recipe=recipe,
        seed=seed,
        out_dir=work_dir / "checkpoints",
        on_progress=on_progress or (lambda _done, _total, _note: None),
        on_checkpoint=on_checkpoint or (lambda _folder, _step: None),
    )
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return Distilled(
        adapter_dir=_save_adapter(trainer.model, work_dir / "adapter", student),
        curve=_curve(trainer.state.log_history),
        steps=trainer.state.global_step,
        trained_tokens=recipe.epochs * sum(lesson.answer_tokens for lesson in lessons),
        trainable_parameters=sum(part.numel() for part in trainer.model.parameters() if part.requires_grad),
    )


class _Said(NamedTuple):
    """What one teacher said of one text, with the weight of its opinion by the example's task."""

    scored: ScoredText
    teacher: TeacherSettings

    def weight(self, task: str) -> float:
        return self.teacher.task_weights.get(task, self.teacher.weight)


def _scored(targets: SoftTargets, shards: Sequence[Path]) -> dict[str, list[_Said]]:
    """Return what was said of each example, teacher after teacher."""
    said: dict[str, list[_Said]] = {}
    done = 0
    for cache in targets.caches:
        paths = shards[done : done + len(cache.shards)]
        done += len(paths)
        digests = [shard.sha256 for shard in cache.shards]
        for scored in read_shards(paths, teacher=cache.teacher, digests=digests):
            said.setdefault(scored.id, []).append(_Said(scored, cache.teacher.asked))
    return said


def _lessons(
    examples: Sequence[Example], said: dict[str, list[_Said]], maker: LessonMaker, *, everyone: bool
) -> list[Lesson]:
    """Put the training examples into lessons; `everyone`: a teacher that scores given text has scored each of them."""
    training = [example for example in examples if example.split == "train"]
    missing = [example.id for example in training if example.id not in said]
    if missing and everyone:
        raise StageFailedError(
            f"{len(missing)} of {len(training)} training examples have no soft targets, such as '{missing[0]}'. "
            "Label this dataset again."
        )
    lessons: list[Lesson] = []
    for example in training:
        about = said.pop(example.id, [])  # they are large, and not needed twice
        weights = [one.weight(example.task) for one in about]
        lessons += maker.lessons(example, [one.scored for one in about], weights)
    if not lessons:
        raise StageFailedError(
            f"None of the {len(training)} training examples leaves room for an answer within "
            f"{maker.recipe.max_tokens} tokens. Choose a recipe with a higher max_tokens, or shorter conversations."
        )
    return lessons


def _curve(log_history: Sequence[dict[str, Any]]) -> list[TrainingCurvePoint]:
    logged = [entry for entry in log_history if "cross_entropy" in entry]
    every = -(-len(logged) // CURVE_POINTS) or 1
    return [
        TrainingCurvePoint(
            step=entry["step"],
            loss=entry["loss"],
            cross_entropy=entry["cross_entropy"],
            kl=entry["kl"],
            chunk=entry["chunk"],
        )
        for index, entry in enumerate(logged)
        if index % every == 0 or index == len(logged) - 1
    ]


def _save_adapter(model: Any, folder: Path, student: str) -> Path:
    """Write PEFT's two files; the configuration names the model, not this machine's folder, in a fixed order."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card has the path of this machine in it
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = student
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return folder
