"""The teachers' pass: each says once what it thinks of every text, in shards, so that a restart loses one at most.

Knows teachers only as `TeacherAtWork`: local ones and remote ones are labelled by the same loop.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from everswarm.errors import StageFailedError
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets, Teacher, TeacherCache
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import write_shard
from everswarm.training.distillation.teachers.at_work import TeacherAtWork, TeacherToOpen, Text

DEFAULT_SHARD_EXAMPLES = 32  # a minute of labelling on one CPU core, at most, is lost with a worker

ReportProgress = Callable[[int, int, str], None]  # done, total, note
WriteRollout = Callable[[Example], str | None]


class _Shelf(NamedTuple):
    """Where finished work goes."""

    out_dir: Path
    store_shard: Callable[[Path], Artifact]
    on_checkpoint: Callable[[LabelCheckpoint], None]
    report: Callable[[int, str], None]  # examples done of this teacher, note


def label(  # the door of a stage: everything that it needs, by name
    examples: Sequence[Example],
    *,
    dataset: str,
    teachers: Sequence[TeacherToOpen],
    out_dir: Path,
    done: LabelCheckpoint,
    store_shard: Callable[[Path], Artifact],
    on_checkpoint: Callable[[LabelCheckpoint], None],
    on_progress: ReportProgress | None = None,
    shard_examples: int = DEFAULT_SHARD_EXAMPLES,
    rollouts: WriteRollout | None = None,
) -> SoftTargets:
    """Let each teacher label `examples` (those of the test split are left out) and return the record of the caches.

    Args:
        examples: in the dataset's order, which is the order of each cache.
        dataset: sha256 of the dataset.
        teachers: one after another; each is opened only if something is left to do for it.
        out_dir: for shards that are not stored yet.
        done: what an earlier, interrupted run has stored; those shards are not made again.
        store_shard: keeps one finished shard.
        on_checkpoint: called after each stored shard, and when a server has taken a batch, with what is finished now.
        on_progress: called after each example of each teacher.
        shard_examples: examples a shard.
        rollouts: gives the student's own answer to an example's question, or None; the same one whenever it is asked.
            Teachers that score given text see it after the target.

    Raises:
        StageFailedError: there is nothing to label, `done` is of other teachers, or a teacher gave nothing or nonsense.
        NoSpaceError: the disk is full.
    """
    chosen = [example for example in examples if example.split != "test"]
    if not chosen:
        raise StageFailedError("There are no training examples to label; the dataset has none in train or validation.")
    if len(done.finished) > len(teachers):
        raise _other_teacher(done.finished[len(teachers)].teacher)
    out_dir.mkdir(parents=True, exist_ok=True)
    shards = [chosen[start : start + shard_examples] for start in range(0, len(chosen), shard_examples)]
    rollout_of = _remembered(rollouts)
    for number, teacher in enumerate(teachers):
        if number < len(done.finished):
            if done.finished[number].teacher != teacher.teacher:
                raise _other_teacher(done.finished[number].teacher)
            continue

        def report(count: int, note: str, before: int = number * len(chosen)) -> None:
            if on_progress is not None:
                on_progress(before + count, len(teachers) * len(chosen), note)

        shelf = _Shelf(out_dir, store_shard, on_checkpoint, report)
        done = _with_teacher(teacher, shards, done, shelf, dataset=dataset, rollout_of=rollout_of)
    digests = [shard.sha256 for cache in done.finished for shard in cache.shards]
    return SoftTargets(
        dataset=dataset, caches=done.finished, digest=hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _with_teacher(
    teacher: TeacherToOpen,
    shards: Sequence[Sequence[Example]],
    done: LabelCheckpoint,
    shelf: _Shelf,
    *,
    dataset: str,
    rollout_of: WriteRollout,
) -> LabelCheckpoint:
    """Make the shards that are missing of one teacher; the last one's checkpoint has the teacher among the finished."""
    name = _shard_name(teacher.teacher, dataset, len(shards[0]))
    if len(done.shards) >= len(shards) or any(not shard.name.startswith(name) for shard in done.shards):
        raise StageFailedError(
            f"The checkpoint's {len(done.shards)} shards are not of teacher {teacher.teacher.asked.name} over this "
            "dataset. Begin labelling anew: everswarm cycle retry"
        )
    with contextlib.closing(teacher.open()) as at_work:
        return _with_shards(teacher.teacher, at_work, shards, done, shelf, name=name, rollout_of=rollout_of)


def _with_shards(
    teacher: Teacher,
    at_work: TeacherAtWork,
    shards: Sequence[Sequence[Example]],
    done: LabelCheckpoint,
    shelf: _Shelf,
    *,
    name: str,
    rollout_of: WriteRollout,
) -> LabelCheckpoint:
    for number in range(len(done.shards), len(shards)):
        texts = list(_texts(shards[number], rollout_of if at_work.scores_given_text else None))
        scored: list[ScoredText] = []

        def remember(batch: str) -> None:
            nonlocal done
            done = done.model_copy(update={"batch": batch})
            shelf.on_checkpoint(done)

        before = number * len(shards[0])
        place = {example.id: before + index for index, example in enumerate(shards[number], start=1)}
        for text in at_work.label(texts, batch=done.batch, on_batch=remember):
            scored.append(text)
            shelf.report(place[text.id], f"{Path(teacher.model).name} teaches")
        path = shelf.out_dir / f"{name}-{number:04d}.parquet"
        write_shard(scored, path, teacher=teacher)
        done = _with_shard(done, shelf.store_shard(path), scored)
        if number == len(shards) - 1:
            if not any(done.texts.values()):
                raise _said_nothing(teacher, sum(len(shard) for shard in shards))
            done = LabelCheckpoint(finished=[*done.finished, _finished(teacher, at_work, done)])
        shelf.on_checkpoint(done)
    return done


def _texts(examples: Iterable[Example], rollout_of: WriteRollout | None) -> Iterable[Text]:
    for example in examples:
        yield Text(example, example.target, "target")
        rollout = rollout_of(example) if rollout_of is not None else None
        if rollout:
            yield Text(example, rollout, "rollout")


def _remembered(rollouts: WriteRollout | None) -> WriteRollout:
    """Return `rollouts` such that a second teacher sees what the first one saw, and the student writes once."""
    written: dict[str, str | None] = {}

    def rollout_of(example: Example) -> str | None:
        if rollouts is not None and example.id not in written:
            written[example.id] = rollouts(example)
        return written.get(example.id)

    return rollout_of


def _with_shard(done: LabelCheckpoint, shard: Artifact, scored: Sequence[ScoredText]) -> LabelCheckpoint:
    texts = dict(done.texts)
    for text in scored:
        texts[text.source] = texts.get(text.source, 0) + 1
    return LabelCheckpoint(
        finished=done.finished,
        shards=[*done.shards, shard],
        texts=texts,
        tokens=done.tokens + sum(text.tokens for text in scored),
        text_bytes=done.text_bytes + sum(len(text.text) for text in scored),
        mass_sum=done.mass_sum + sum(text.top_k_mass for text in scored),
    )


def _finished(teacher: Teacher, at_work: TeacherAtWork, done: LabelCheckpoint) -> TeacherCache:
    return TeacherCache(
        teacher=teacher,
        shards=done.shards,
        texts=done.texts,
        tokens=done.tokens,
        text_bytes=done.text_bytes,
        top_k=at_work.top_k,
        top_k_mass=done.mass_sum / max(done.tokens, 1),
    )


def _shard_name(teacher: Teacher, dataset: str, shard_examples: int) -> str:
    """Return how the shards of this cache are called: a checkpoint tells by it whose shards it holds."""
    key = f"{dataset} {shard_examples} {teacher.model_dump_json()}"
    return f"soft-targets-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _said_nothing(teacher: Teacher, examples: int) -> StageFailedError:
    return StageFailedError(
        f"The teacher {teacher.asked.name} gave nothing for any of the {examples} examples; the worker's log says why. "
        "Look at it with: everswarm doctor, or name another teacher."
    )


def _other_teacher(found: Teacher) -> StageFailedError:
    return StageFailedError(
        f"The checkpoint is of teacher {found.asked.name} ({found.model}, {found.quantization}, {found.template}), "
        "which is not the one asked for now. Ask for the same teachers, or begin labelling anew: everswarm cycle retry"
    )
