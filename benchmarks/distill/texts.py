"""Real judged answers, split for a teacher, a student and an examiner; and their soft targets in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.compare import instructions
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets
from everswarm.training.workspace import describe

TEACHER_QUESTIONS, STUDENT_QUESTIONS = 800, 150  # the rest is held out
GENERAL_TEXTS = 60


class Texts(NamedTuple):
    """Questions with the answer that a person wrote or found right; no question is in two parts."""

    teacher: list[Example]
    student: list[Example]
    held_out: list[Example]
    general: list[Example]  # instructions of other kinds, which no run learns from


def read_texts(feedback: Path) -> Texts:
    """Return the distinct questions of `feedback` in file order, and the instructions that lie beside it."""
    found: dict[str, Example] = {}
    for line in feedback.read_text(encoding="utf-8").splitlines():
        record = JudgedInteraction.model_validate_json(line)
        target = record.correction or (record.response if record.rating == 5 else None)
        if target and record.messages[-1].content not in found:
            found[record.messages[-1].content] = Example(
                id=record.id,
                user=record.device_id or record.id,
                split="train",
                messages=record.messages,
                target=target,
                source="correction" if record.correction else "answer",
                task="math",
            )
    questions = list(found.values())
    others = [
        Example(id=text.id, user=text.id, split="test", messages=text.messages, target=text.target, source="correction")
        for text in instructions(feedback.parent / "feedback-instructions.jsonl")
    ]
    middle = TEACHER_QUESTIONS + STUDENT_QUESTIONS
    return Texts(
        questions[:TEACHER_QUESTIONS], questions[TEACHER_QUESTIONS:middle], questions[middle:], others[:GENERAL_TEXTS]
    )


def write_examples(examples: Sequence[Example], path: Path) -> Path:
    """Write JSON lines of `Example`; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{example.model_dump_json()}\n" for example in examples), encoding="utf-8")
    return path


def label_with_weights(examples: Sequence[Example], teacher: Path, folder: Path, **asked: object) -> Path:
    """Label `examples` with the model in the folder `teacher`; return a JSON of `SoftTargets` among its shards.

    `asked` are fields of `TeacherSettings`. What is there from an earlier run is used again.
    """
    from everswarm.settings import TeacherSettings
    from everswarm.training.distillation import label
    from everswarm.training.distillation.teachers.weights import open_weights_teacher, weights_revision

    record = folder / "targets.json"
    if record.exists():
        return record
    folder.mkdir(parents=True, exist_ok=True)
    settings = TeacherSettings.model_validate({"source": "weights", "model": teacher.name} | asked)

    def keep(path: Path) -> Artifact:
        artifact = describe(path, kind=ArtifactKind.SOFT_TARGETS)
        path.replace(folder / artifact.sha256)
        return artifact

    targets: SoftTargets = label(
        examples,
        dataset=hashlib.sha256("".join(example.id for example in examples).encode()).hexdigest(),
        teachers=[
            open_weights_teacher(
                settings, folder=teacher, model=teacher.name, revision=weights_revision(teacher), threads=1
            )
        ],
        out_dir=folder,
        done=LabelCheckpoint(),
        store_shard=keep,
        on_checkpoint=lambda _done: None,
    )
    record.write_text(targets.model_dump_json(), encoding="utf-8")
    return record
