"""A student's run on cached soft targets: what it learns, where it goes on after a crash, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets, Teacher
from everswarm.settings import TeacherSettings
from everswarm.training.distillation import Distilled, distill, label
from everswarm.training.distillation.lessons import Lesson, LessonMaker
from everswarm.training.distillation.losses import forward_kl
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import read_shards
from everswarm.training.distillation.teachers import TeacherToOpen, Text
from everswarm.training.distillation.teachers.weights import open_weights_teacher
from everswarm.training.distillation.trainer import collate

Examples = Callable[[int], list[Example]]
RECIPE = Recipe(
    name="tiny",
    rank=4,
    alpha=8,
    dropout=0.1,
    target_modules=["q_proj", "v_proj"],
    learning_rate=1e-2,
    batch_size=2,
    epochs=1,
    max_tokens=128,
    soft_target_weight=0.7,
    checkpoint_every_steps=2,
)


class Labelled(NamedTuple):
    """Soft targets and their files."""

    targets: SoftTargets
    shards: list[Path]

    def scored(self) -> list[ScoredText]:
        return list(read_shards(self.shards))


class OwnWords:
    """A teacher that answers with words of its own, and tells no log-probabilities."""

    scores_given_text = False
    top_k = 0

    def __init__(self, *, silent_about: str = "") -> None:
        self.silent_about = silent_about

    def label(self, texts: list[Text], **_named: object) -> list[ScoredText]:
        none = np.zeros(0, dtype=np.float32)
        return [
            ScoredText(
                id=text.example.id,
                source="teacher",
                text=b"It is far.",
                ended=True,
                end=none.astype(np.int32),
                logprob=none,
                vocabulary=[],
                top=np.zeros((0, 0), dtype=np.int32),
                top_logprob=np.zeros((0, 0), dtype=np.float32),
                tail_logprob=none,
            )
            for text in texts
            if text.example.id != self.silent_about
        ]

    def close(self) -> None:
        pass


def own_words(**options: str) -> TeacherToOpen:
    asked = TeacherSettings(source="endpoint", model="primary")
    record = Teacher(asked=asked, model="primary", revision="as served", quantization="as served", template="chat-1")
    return TeacherToOpen(record, lambda: OwnWords(**options))  # type: ignore[arg-type, return-value]  # a list will do


def student_as_teacher(folder: Path, *, top_k: int = 20, **asked: Any) -> TeacherToOpen:
    return open_weights_teacher(
        TeacherSettings(**asked), folder=folder, model="tiny/student", revision="0" * 64, threads=1, top_k=top_k
    )


def labelled(examples: list[Example], folder: Path, *teachers: TeacherToOpen, **options: Any) -> Labelled:
    stored: list[Path] = []

    def store(path: Path) -> Artifact:
        stored.append(path)
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        return Artifact(sha256=digest, size_bytes=len(data), kind=ArtifactKind.SOFT_TARGETS, name=path.name)

    targets = label(
        examples,
        dataset="1" * 64,
        teachers=teachers,
        out_dir=folder,
        done=LabelCheckpoint(),
        store_shard=store,
        on_checkpoint=lambda _done: None,
        shard_examples=4,
        **options,
    )
    return Labelled(targets, stored)


@pytest.fixture(scope="module")
def soft(tiny_student: Path, make_examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Soft targets of ten examples, by the student in hindsight."""
    return labelled(make_examples(10), tmp_path_factory.mktemp("shards"), student_as_teacher(tiny_student))


def train(examples: list[Example], weights: Path, soft: Labelled, work_dir: Path, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {"recipe": RECIPE, "seed": 3, "student": "tiny/student", **soft._asdict()} | options
    return distill(examples=examples, weights=weights, work_dir=work_dir, **arguments)


def lesson_maker(tiny_student: Path, *, max_tokens: int = 128) -> LessonMaker:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    return LessonMaker(tokenizer, RECIPE.model_copy(update={"max_tokens": max_tokens}), vocabulary=len(tokenizer))


def weights_of(done: Distilled) -> bytes:
    return (done.adapter_dir / "adapter_model.safetensors").read_bytes()


# --- what a run gives


def test_run_learns_and_reports(tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    done = train(
        make_examples(10),
        tiny_student,
        soft,
        tmp_path,
        recipe=RECIPE.model_copy(update={"epochs": 4, "only_better": False}),
        on_progress=lambda *progress: seen.append(progress),
    )
    assert done.steps == 20
    assert [point.step for point in done.curve] == list(range(1, 21))
    assert done.curve[-1].cross_entropy < done.curve[0].cross_entropy
    for point in done.curve:
        assert point.loss == pytest.approx(0.7 * point.kl + 0.3 * point.cross_entropy, rel=1e-4)
    assert [step for step, _, _ in seen] == list(range(1, 21))
    assert seen[-1][1] == 20
    assert seen[-1][2].startswith("loss ")
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokens = sum(len(tokenizer(example.target)["input_ids"]) + 1 for example in make_examples(10))
    assert done.trained_tokens == 4 * tokens
    weights = load_file(done.adapter_dir / "adapter_model.safetensors")
    assert done.trainable_parameters == sum(part.numel() for part in weights.values())
    assert any(part.abs().max() > 0 for name, part in weights.items() if "lora_B" in name)


def test_configuration_names_the_model_and_no_folder(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    done = train(make_examples(4), tiny_student, soft, tmp_path)
    text = (done.adapter_dir / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "tiny/student"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert str(tiny_student) not in text
    assert {path.name for path in done.adapter_dir.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_all_linear_recipe_trains_every_layer(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"target_modules": "all-linear"})
    done = train(make_examples(4), tiny_student, soft, tmp_path, recipe=recipe)
    names = set(load_file(done.adapter_dir / "adapter_model.safetensors"))
    assert any("down_proj" in name for name in names)
    assert not any("lm_head" in name for name in names)


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    first, again, other = (
        weights_of(train(make_examples(6), tiny_student, soft, tmp_path / str(number), seed=seed))
        for number, seed in enumerate((1, 1, 2))
    )
    assert first == again != other


# --- after a crash


@pytest.mark.parametrize("cut_at", [2, 4])
def test_resumed_run_equals_one_that_was_never_cut(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path, cut_at: int
) -> None:
    examples = make_examples(10)
    whole = train(examples, tiny_student, soft, tmp_path / "whole")
    saved = tmp_path / "saved"

    def killed(folder: Path, step: int) -> None:
        if step == cut_at:
            shutil.copytree(folder, saved)
            raise RuntimeError("the worker was killed")

    with pytest.raises(RuntimeError):
        train(examples, tiny_student, soft, tmp_path / "cut", on_checkpoint=killed)
    resumed = train(examples, tiny_student, soft, tmp_path / "again", resume_from=saved)
    assert resumed.curve == whole.curve
    assert resumed[2:] == whole[2:]
    assert weights_of(resumed) == weights_of(whole)


def test_checkpoint_is_small_and_whole(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    names: dict[int, set[str]] = {}
    train(
        make_examples(10),
        tiny_student,
        soft,
        tmp_path,
        on_checkpoint=lambda folder, step: names.update({step: {path.name for path in folder.iterdir()}}),
    )
    assert sorted(names)[:2] == [2, 4]
    assert {
        "adapter_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    } <= names[2]
    assert not names[2] & {"tokenizer.json", "model.safetensors"}


# --- what is compared with what


def test_answers_of_a_batch_go_through_the_head_as_those_of_one_text_at_a_time(
    tiny_student: Path, make_examples: Examples, soft: Labelled
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    model = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    lessons = lessons_of(make_examples(3), soft, lesson_maker(tiny_student))
    batch = collate(lessons, vocabulary=len(tokenizer))
    with torch.inference_mode():
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        found = model.lm_head(hidden.flatten(0, 1)[batch["positions"]])
        alone = [model(torch.tensor([lesson.ids])).logits[0, lesson.prompt_tokens - 1 : -1] for lesson in lessons]
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)
    answers = [tokenizer(example.target)["input_ids"] + [tokenizer.eos_token_id] for example in make_examples(3)]
    assert batch["ids"].tolist() == [number for answer in answers for number in answer]


def lessons_of(examples: list[Example], soft: Labelled, maker: LessonMaker) -> list[Lesson]:
    scored = {text.id: text for text in soft.scored()}
    return [lesson for example in examples for lesson in maker.lessons(example, [scored[example.id]])]


def test_cached_targets_give_the_dense_loss_when_k_is_the_vocabulary(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    """The whole path, parquet and bytes included, against the teacher's own logits."""
    teacher = student_as_teacher(tiny_student, top_k=100_000, hindsight=False)
    [lesson] = lessons_of(make_examples(1), labelled(make_examples(1), tmp_path, teacher), lesson_maker(tiny_student))
    model = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    with torch.inference_mode():
        told = model(torch.tensor([lesson.ids])).logits[0, lesson.prompt_tokens - 1 : -1].log_softmax(-1)
    torch.manual_seed(5)
    student = torch.randn_like(told).log_softmax(-1)
    dense = (told.exp() * (told - student)).sum(-1)
    ids, top, tail = (torch.from_numpy(part) for part in (lesson.top_ids, lesson.top_logprobs, lesson.tail_logprob))
    rest = student.exp().scatter(1, ids, 0.0).sum(-1).log()
    assert torch.allclose(forward_kl(student.gather(1, ids), rest, top, tail), dense, atol=1e-3)


def test_long_example_is_cut_and_one_without_room_is_left_out(
    tiny_student: Path, make_examples: Examples, soft: Labelled
) -> None:
    [whole] = lessons_of(make_examples(1), soft, lesson_maker(tiny_student))
    assert whole.ids[-1] == AutoTokenizer.from_pretrained(tiny_student).eos_token_id
    maker = lesson_maker(tiny_student, max_tokens=whole.prompt_tokens + 3)
    [cut] = lessons_of(make_examples(1), soft, maker)
    assert cut.answer_tokens == len(cut.top_ids) == 3
    assert lessons_of(make_examples(1), soft, lesson_maker(tiny_student, max_tokens=whole.prompt_tokens)) == []


# --- several teachers, and those that write themselves


def test_teachers_that_agree_teach_as_one(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    twice = labelled(
        make_examples(4),
        tmp_path / "labels",
        student_as_teacher(tiny_student),
        student_as_teacher(tiny_student, weight=3.0, task_weights={"other": 0.5}),
    )
    one = train(make_examples(4), tiny_student, soft, tmp_path / "one")
    two = train(make_examples(4), tiny_student, twice, tmp_path / "two")
    assert [point.loss for point in two.curve] == pytest.approx([point.loss for point in one.curve], rel=1e-3)


def test_teacher_that_writes_text_alone_adds_its_answers_and_the_targets_stay(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    examples = make_examples(4)
    soft = labelled(examples, tmp_path / "labels", own_words(silent_about="example-2"))
    done = train(examples, tiny_student, soft, tmp_path, recipe=RECIPE.model_copy(update={"batch_size": 1}))
    assert done.steps == 4 + 3
    assert {point.kl for point in done.curve} == {0.0}
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    answers = [example.target for example in examples] + ["It is far."] * 3
    assert done.trained_tokens == sum(len(tokenizer(answer)["input_ids"]) + 1 for answer in answers)
    for point in done.curve:
        assert point.loss == pytest.approx(point.cross_entropy, rel=1e-4)  # at its full weight: nobody else speaks


def test_what_the_student_wrote_is_compared_and_not_learnt_by_heart(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    soft = labelled(
        make_examples(2), tmp_path, student_as_teacher(tiny_student), rollouts=lambda example: f"{example.id}?"
    )
    maker = lesson_maker(tiny_student)
    texts = [text for text in soft.scored() if text.id == "example-1"]
    lessons = maker.lessons(make_examples(1)[0], texts)
    assert sorted(lesson.source for lesson in lessons) == ["rollout", "target"]
    rollout = next(lesson for lesson in lessons if lesson.source == "rollout")
    assert (rollout.text_weight.max(), rollout.forward_weight.max()) == (0.0, 0.0)
    assert rollout.reverse_weight == pytest.approx(np.full(rollout.answer_tokens, 0.7))
    done = train(make_examples(2), tiny_student, soft, tmp_path)
    assert done.steps == 2
    assert all(math.isfinite(point.kl) and point.kl > 0 for point in done.curve)


# --- what is refused


def test_run_without_room_for_any_answer_is_refused(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    small = RECIPE.model_copy(update={"max_tokens": 16})
    with pytest.raises(StageFailedError, match=r"None of the 4 training examples leaves room .* within 16 tokens"):
        train(make_examples(4), tiny_student, soft, tmp_path, recipe=small)


def test_soft_targets_of_another_dataset_are_refused(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    with pytest.raises(StageFailedError, match="2 of 12 training examples have no soft targets, such as 'example-11'"):
        train(make_examples(12), tiny_student, soft, tmp_path)
    other = [example.model_copy(update={"target": "another"}) for example in make_examples(2)]
    with pytest.raises(StageFailedError, match="are of another text"):
        train(other, tiny_student, soft, tmp_path)


def test_shard_that_is_not_the_promised_one_is_refused(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    swapped = [soft.shards[1], soft.shards[0], *soft.shards[2:]]
    with pytest.raises(StageFailedError, match=r"sha256|digest"):
        train(make_examples(10), tiny_student, soft, tmp_path, shards=swapped)
    cut = tmp_path / soft.shards[0].name
    cut.write_bytes(soft.shards[0].read_bytes()[:-40])
    with pytest.raises(StageFailedError, match=r"\.parquet"):
        train(make_examples(10), tiny_student, soft, tmp_path, shards=[cut, *soft.shards[1:]])


def test_loss_that_is_not_a_number_stops_the_run(
    tiny_student: Path, make_examples: Examples, soft: Labelled, tmp_path: Path
) -> None:
    wild = RECIPE.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(StageFailedError, match=r"not a number at step \d+ of 5. Lower learning_rate"):
        train(make_examples(10), tiny_student, soft, tmp_path, recipe=wild)
