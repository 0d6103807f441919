"""The loop over teachers and shards, with teachers that make up their scores from the text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everswarm.errors import StageFailedError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets, Teacher
from everswarm.settings import TeacherSettings
from everswarm.training.distillation import label
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import read_shards
from everswarm.training.distillation.teachers import TeacherToOpen, Text
from everswarm.training.distillation.teachers.weights import open_weights_teacher, weights_revision

Examples = Callable[[int], list[Example]]


class LetterTeacher:
    """Takes each byte for a token, and finds it as likely as its number says; writes its own text if it must."""

    top_k = 2

    def __init__(self, *, scores_given_text: bool = True, logprob: float | None = None) -> None:
        self.scores_given_text = scores_given_text
        self.logprob = logprob
        self.is_closed = False
        self.seen: list[Text] = []
        self.batches: list[str | None] = []

    def label(
        self, texts: Sequence[Text], *, batch: str | None, on_batch: Callable[[str], None]
    ) -> Iterator[ScoredText]:
        self.batches.append(batch)
        if not self.scores_given_text and batch is None:
            on_batch(f"batch-of-{texts[0].example.id}")
        for text in texts:
            self.seen.append(text)
            yield self.score(text)

    def close(self) -> None:
        self.is_closed = True

    def score(self, text: Text) -> ScoredText:
        data = text.completion.encode() if self.scores_given_text else b"my own answer"
        count = len(data)
        logprob = np.array([-byte / 64 for byte in data], dtype=np.float32)
        top = np.tile(np.array([[0, 1]], dtype=np.int32), (count, 1))
        return ScoredText(
            id=text.example.id,
            source=text.source if self.scores_given_text else "teacher",
            text=data,
            ended=False,
            end=np.arange(1, count + 1, dtype=np.int32),
            logprob=logprob if self.logprob is None else np.full(count, self.logprob, dtype=np.float32),
            vocabulary=[b"a", b"b"],
            top=top,
            top_logprob=np.tile(np.log(np.array([[0.5, 0.25]], dtype=np.float32)), (count, 1)),
            tail_logprob=np.full(count, np.log(0.25), dtype=np.float32),
        )


def to_open(teacher: LetterTeacher | None = None, *, name: str = "letters", **asked: Any) -> TeacherToOpen:
    record = Teacher(
        asked=TeacherSettings(source="weights", model=name, **asked),
        model=name,
        revision="0" * 64,
        quantization="float32",
        template="chat-1/ask-again-1",
    )
    return TeacherToOpen(record, lambda: teacher or LetterTeacher())


def never_opened(name: str = "letters") -> TeacherToOpen:
    def fail() -> LetterTeacher:
        raise AssertionError("opened")

    return TeacherToOpen(to_open(name=name).teacher, fail)


class Store:
    """Keeps shards by name and remembers checkpoints, as a worker's workspace does."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.paths: list[Path] = []
        self.checkpoints: list[LabelCheckpoint] = []
        self.fail_at = fail_at

    def store(self, path: Path) -> Artifact:
        if len(self.paths) == self.fail_at:
            raise RuntimeError("the worker was killed")
        self.paths.append(path)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return Artifact(sha256=digest, size_bytes=len(data), kind=ArtifactKind.SOFT_TARGETS, name=path.name)


def run(
    examples: list[Example], out_dir: Path, store: Store, teachers: Sequence[TeacherToOpen], **options: Any
) -> SoftTargets:
    options.setdefault("done", LabelCheckpoint())
    options.setdefault("dataset", "1" * 64)
    return label(
        examples,
        teachers=teachers,
        out_dir=out_dir,
        shard_examples=2,
        store_shard=store.store,
        on_checkpoint=store.checkpoints.append,
        **options,
    )


def own_answer(example: Example) -> str | None:
    return None if example.id == "example-2" else f"I think {example.id}"


def test_each_teacher_has_a_cache_of_shards_in_the_datasets_order(make_examples: Examples, tmp_path: Path) -> None:
    store = Store()
    teachers = [to_open(), to_open(name="others")]
    record = run(make_examples(3), tmp_path, store, teachers)
    assert [cache.teacher.model for cache in record.caches] == ["letters", "others"]
    assert [len(cache.shards) for cache in record.caches] == [2, 2]
    shards = [shard.sha256 for cache in record.caches for shard in cache.shards]
    assert record.digest == hashlib.sha256("".join(shards).encode()).hexdigest()
    texts = list(read_shards(store.paths[:2], teacher=teachers[0].teacher))
    assert [text.id for text in texts] == ["example-1", "example-2", "example-3"]
    first = record.caches[0]
    assert first.tokens == first.text_bytes == sum(len(text.text) for text in texts)
    assert (first.texts, first.top_k) == ({"target": 3}, 2)
    assert first.top_k_mass == pytest.approx(0.75)
    assert len(store.checkpoints) == 4


def test_interrupted_run_gives_the_same_digest_wherever_it_was_cut(make_examples: Examples, tmp_path: Path) -> None:
    examples = make_examples(5)
    teachers = [to_open(), to_open(name="others")]
    whole = run(examples, tmp_path, Store(), teachers, rollouts=own_answer)

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cuts=st.lists(st.integers(0, 4), max_size=3))
    def check(cuts: list[int]) -> None:
        done = LabelCheckpoint()
        for cut in cuts:
            store = Store(fail_at=cut)
            try:
                run(examples, tmp_path, store, teachers, done=done, rollouts=own_answer)
            except RuntimeError:
                done = LabelCheckpoint.model_validate_json([done, *store.checkpoints][-1].model_dump_json())
        assert run(examples, tmp_path, Store(), teachers, done=done, rollouts=own_answer) == whole

    check()


def test_finished_teachers_are_not_opened_again(make_examples: Examples, tmp_path: Path) -> None:
    store = Store()
    whole = run(make_examples(3), tmp_path, store, [to_open()])
    assert run(make_examples(3), tmp_path, Store(), [never_opened()], done=store.checkpoints[-1]) == whole


def test_checkpoint_of_other_teachers_is_refused(make_examples: Examples, tmp_path: Path) -> None:
    store = Store()
    run(make_examples(3), tmp_path, store, [to_open()])
    half, whole = store.checkpoints
    with pytest.raises(StageFailedError, match=r"is of teacher weights:letters \(letters, float32, chat-1/ask-again"):
        run(make_examples(3), tmp_path, Store(), [to_open(weight=2.0)], done=whole)
    two = whole.model_copy(update={"finished": whole.finished * 2})
    with pytest.raises(StageFailedError, match="not the one asked for now"):
        run(make_examples(3), tmp_path, Store(), [never_opened()], done=two)
    with pytest.raises(StageFailedError, match=r"1 shards are not of teacher weights:others .* everswarm cycle retry"):
        run(make_examples(3), tmp_path, Store(), [never_opened("others")], done=half)
    with pytest.raises(StageFailedError, match="not of teacher weights:letters over this dataset"):
        run(make_examples(3), tmp_path, Store(), [never_opened()], done=half, dataset="2" * 64)


def test_rollouts_follow_the_target_and_are_written_once(make_examples: Examples, tmp_path: Path) -> None:
    asked: list[str] = []

    def write(example: Example) -> str | None:
        asked.append(example.id)
        return own_answer(example)

    teachers = [LetterTeacher(), LetterTeacher()]
    opened = [to_open(teachers[0]), to_open(teachers[1], name="others")]
    record = run(make_examples(2), tmp_path, Store(), opened, rollouts=write)
    assert asked == ["example-1", "example-2"]
    assert [(text.example.id, text.source) for text in teachers[0].seen] == [
        ("example-1", "target"),
        ("example-1", "rollout"),
        ("example-2", "target"),
    ]
    assert teachers[1].seen == teachers[0].seen
    assert record.caches[0].texts == {"target": 2, "rollout": 1}


def test_teacher_that_writes_its_own_answers_sees_no_rollouts(make_examples: Examples, tmp_path: Path) -> None:
    def write(_example: Example) -> str | None:
        raise AssertionError("a roll-out that nobody scores")

    record = run(make_examples(2), tmp_path, Store(), [to_open(LetterTeacher(scores_given_text=False))], rollouts=write)
    assert record.caches[0].texts == {"teacher": 2}


def test_batch_under_way_is_remembered_until_its_shard_is_stored(make_examples: Examples, tmp_path: Path) -> None:
    killed = Store(fail_at=1)
    with pytest.raises(RuntimeError):
        run(make_examples(4), tmp_path, killed, [to_open(LetterTeacher(scores_given_text=False))])
    assert [done.batch for done in killed.checkpoints] == ["batch-of-example-1", None, "batch-of-example-3"]
    again = LetterTeacher(scores_given_text=False)
    run(make_examples(4), tmp_path, Store(), [to_open(again)], done=killed.checkpoints[-1])
    assert again.batches == ["batch-of-example-3"]


def test_test_split_is_never_labelled(make_examples: Examples, tmp_path: Path) -> None:
    examples = make_examples(3)
    examples[1] = examples[1].model_copy(update={"split": "test"})
    examples[2] = examples[2].model_copy(update={"split": "validation"})
    teacher = LetterTeacher()
    run(examples, tmp_path, Store(), [to_open(teacher)])
    assert [text.example.id for text in teacher.seen] == ["example-1", "example-3"]
    with pytest.raises(StageFailedError, match="no training examples to label"):
        run([examples[1]], tmp_path, Store(), [never_opened()])


def test_teacher_that_answers_nonsense_is_refused(make_examples: Examples, tmp_path: Path) -> None:
    store = Store()
    with pytest.raises(StageFailedError, match="example 'example-1'"):
        run(make_examples(2), tmp_path, store, [to_open(LetterTeacher(logprob=0.5))])
    assert not store.paths


def test_teacher_is_closed_before_the_next_one_is_opened_and_when_it_fails(
    make_examples: Examples, tmp_path: Path
) -> None:
    first, failing = LetterTeacher(), LetterTeacher(logprob=0.5)

    def open_second() -> LetterTeacher:
        assert first.is_closed
        return failing

    second = TeacherToOpen(to_open(name="others").teacher, open_second)
    with pytest.raises(StageFailedError, match="example 'example-1'"):
        run(make_examples(2), tmp_path, Store(), [to_open(first), second])
    assert failing.is_closed


def test_teacher_with_nothing_to_say_at_all_is_refused(
    make_examples: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = LetterTeacher(scores_given_text=False)
    monkeypatch.setattr(
        silent, "label", lambda texts, **_: [silent.score(t) for t in texts if t.example.id == "example-5"]
    )
    with pytest.raises(
        StageFailedError, match=r"weights:letters gave nothing for any of the 4 examples.*everswarm doctor"
    ):
        run(make_examples(4), tmp_path / "a", Store(), [to_open(silent)])
    record = run(make_examples(5), tmp_path / "b", Store(), [to_open(silent)])
    assert record.caches[0].texts == {"teacher": 1}


def test_progress_counts_examples_over_all_teachers(make_examples: Examples, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    run(
        make_examples(3),
        tmp_path,
        Store(),
        [to_open(), to_open(name="others")],
        on_progress=lambda done, total, note: seen.append((done, total, note)),
    )
    assert seen == [(n, 6, "letters teaches" if n <= 3 else "others teaches") for n in range(1, 7)]


def test_real_weights_killed_between_shards_give_the_same_digest(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    teacher = open_weights_teacher(
        TeacherSettings(), folder=tiny_student, model="tiny", revision=weights_revision(tiny_student), threads=1
    )
    whole = run(make_examples(5), tmp_path / "a", Store(), [teacher])
    killed = Store(fail_at=2)
    with pytest.raises(RuntimeError):
        run(make_examples(5), tmp_path / "b", killed, [teacher])
    again = Store()
    assert run(make_examples(5), tmp_path / "c", again, [teacher], done=killed.checkpoints[-1]) == whole
    assert len(again.paths) == 1


def test_record_of_a_cycle_from_when_there_was_one_teacher_is_still_read() -> None:
    first_version = {
        "schema_version": 1,
        "teacher": {"model": "tiny/student", "weights_sha256": "1" * 64, "hindsight": True, "template": "ask-again-1"},
        "dataset": "2" * 64,
        "shards": [{"sha256": "3" * 64, "size_bytes": 5, "kind": "soft-targets", "name": "soft-targets-0000.parquet"}],
        "digest": "4" * 64,
        "top_k": 20,
        "tokens": 10,
        "text_bytes": 40,
        "top_k_mass": 0.99,
    }
    targets = SoftTargets.model_validate(first_version)
    [cache] = targets.caches
    assert (cache.teacher.model, cache.teacher.revision, cache.tokens) == ("tiny/student", "1" * 64, 10)
    assert SoftTargets.model_validate_json(targets.model_dump_json()) == targets
