from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import LabelCheckpoint
from everswarm.training.distillation import Distilled, distill, hindsight_teacher, label
from everswarm.training.distillation.alignment import LessonMaker, align
from everswarm.training.distillation.losses import soft_target_loss
from everswarm.training.distillation.target_shards import ScoredText, read_shards
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


@pytest.fixture(scope="module")
def shards(tiny_student: Path, make_examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Soft targets of ten examples."""
    folder = tmp_path_factory.mktemp("shards")
    stored: list[Path] = []

    def store(path: Path) -> Artifact:
        stored.append(path)
        return Artifact(sha256="0" * 64, size_bytes=1, kind=ArtifactKind.SOFT_TARGETS, name=path.name)

    label(
        make_examples(10),
        dataset="1" * 64,
        weights=tiny_student,
        teacher=hindsight_teacher("tiny/student", "0" * 64),
        out_dir=folder,
        done=LabelCheckpoint(),
        store_shard=store,
        on_checkpoint=lambda _done: None,
        shard_examples=4,
    )
    return stored


def train(examples: list[Example], weights: Path, shards: list[Path], work_dir: Path, **options: Any) -> Distilled:
    arguments: dict[str, Any] = {"recipe": RECIPE, "seed": 3, "student": "tiny/student"} | options
    return distill(examples=examples, weights=weights, targets=shards, work_dir=work_dir, **arguments)


def test_run_learns_and_reports(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    done = train(
        make_examples(10),
        tiny_student,
        shards,
        tmp_path,
        recipe=RECIPE.model_copy(update={"epochs": 4}),
        on_progress=lambda *progress: seen.append(progress),
    )
    assert done.steps == 20
    assert [point.step for point in done.curve] == list(range(1, 21))
    assert done.curve[-1].loss < done.curve[0].loss
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
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    done = train(make_examples(4), tiny_student, shards, tmp_path)
    text = (done.adapter_dir / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "tiny/student"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert str(tiny_student) not in text
    assert {path.name for path in done.adapter_dir.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("cut_at", [2, 4])
def test_resumed_run_equals_one_that_was_never_cut(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path, cut_at: int
) -> None:
    examples = make_examples(10)
    whole = train(examples, tiny_student, shards, tmp_path / "whole")
    saved = tmp_path / "saved"

    def killed(folder: Path, step: int) -> None:
        if step == cut_at:
            shutil.copytree(folder, saved)
            raise RuntimeError("the worker was killed")

    with pytest.raises(RuntimeError):
        train(examples, tiny_student, shards, tmp_path / "cut", on_checkpoint=killed)
    resumed = train(examples, tiny_student, shards, tmp_path / "again", resume_from=saved)
    assert resumed.curve == whole.curve
    assert resumed[2:] == whole[2:]
    files = [run.adapter_dir / "adapter_model.safetensors" for run in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_checkpoint_is_small_and_whole(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    names: dict[int, set[str]] = {}
    train(
        make_examples(10),
        tiny_student,
        shards,
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


def test_same_seed_gives_the_same_weights_and_another_seed_others(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    files = [
        train(make_examples(6), tiny_student, shards, tmp_path / str(number), seed=seed).adapter_dir
        / "adapter_model.safetensors"
        for number, seed in enumerate((1, 1, 2))
    ]
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other


def test_batch_loss_is_that_of_the_plain_model(tiny_student: Path, make_examples: Examples, shards: list[Path]) -> None:
    """Answer positions alone through the last layer, padded and batched, against one example at a time in full."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    model = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    maker = LessonMaker(tokenizer, max_tokens=128)
    examples, scored = make_examples(3), list(read_shards(shards))
    lessons = [maker.make(example, text) for example, text in zip(examples, scored, strict=False)]
    batch = collate([lesson for lesson in lessons if lesson])
    with torch.inference_mode():
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        found = model.lm_head(hidden.flatten(0, 1)[batch["positions"]])
        alone = [
            model(torch.tensor([lesson.ids])).logits[0, lesson.prompt_tokens - 1 : -1] for lesson in lessons if lesson
        ]
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)
    answers = [tokenizer(example.target)["input_ids"] + [tokenizer.eos_token_id] for example in examples]
    assert batch["answer_ids"].tolist() == [number for answer in answers for number in answer]


def test_cached_targets_give_the_dense_loss_when_k_is_the_vocabulary(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    """The whole path, 16-bit parquet and bytes included, against the teacher's own logits."""
    example = make_examples(1)[0]
    stored: list[Path] = []

    def store(path: Path) -> Artifact:
        stored.append(path)
        return Artifact(sha256="0" * 64, size_bytes=1, kind=ArtifactKind.SOFT_TARGETS, name=path.name)

    label(
        [example],
        dataset="1" * 64,
        weights=tiny_student,
        teacher=hindsight_teacher("tiny/student", "0" * 64).model_copy(
            update={"hindsight": False, "template": "plain-1"}
        ),
        out_dir=tmp_path,
        done=LabelCheckpoint(),
        store_shard=store,
        on_checkpoint=lambda _done: None,
        top_k=100_000,
    )
    [scored] = read_shards(stored)
    lesson = LessonMaker(AutoTokenizer.from_pretrained(tiny_student), max_tokens=128).make(example, scored)
    assert lesson is not None
    model = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    with torch.inference_mode():
        teacher = model(torch.tensor([lesson.ids])).logits[0, lesson.prompt_tokens - 1 : -1].log_softmax(-1)
    torch.manual_seed(5)
    student = torch.randn_like(teacher)
    dense = (teacher.exp() * (teacher - student.log_softmax(-1))).sum(-1)
    targets = (torch.from_numpy(part) for part in (lesson.top_ids, lesson.top_logprobs, lesson.tail_logprob))
    assert torch.allclose(soft_target_loss(student, *targets), dense, atol=1e-3)


def scored_text(top_bytes: list[list[bytes]], spans: list[tuple[int, int]]) -> ScoredText:
    """A teacher that gives 0.4, 0.3 and 0.2 to its candidates and 0.1 to the tail."""
    count = len(spans)
    return ScoredText(
        id="x",
        text=b"abcd",
        start=[start for start, _ in spans],
        end=[end for _, end in spans],
        logprob=np.zeros(count, np.float32),
        top_bytes=top_bytes,
        top_logprob=np.log(np.tile(np.array([0.4, 0.3, 0.2], np.float32), (count, 1))),
        tail_logprob=np.log(np.full(count, 0.1, np.float32)),
    )


def test_teacher_of_another_tokenizer_speaks_where_the_bytes_agree() -> None:
    scored = scored_text([[b"ab", b"x", b"y"], [b"c", b"ab", b"zz"], [b"", b"c", b"ab"]], [(0, 2), (2, 3), (4, 4)])
    ids, logprobs, tail = align(scored, [(0, 2), (2, 4), (4, 4)], {b"ab": 7, b"c": 8, b"": 9})
    assert ids[0, 0] == 7
    assert np.exp(logprobs[0]).tolist() == pytest.approx([0.4, 0, 0])
    assert math.exp(tail[0]) == pytest.approx(0.6)  # the student has no token for x and y
    assert np.isneginf(logprobs[1]).all()  # bytes 2 to 4 are two tokens of the teacher's
    assert ids[2].tolist() == [9, 8, 7]
    assert math.exp(tail[2]) == pytest.approx(0.1)


def test_candidate_with_the_bytes_of_another_goes_to_the_tail() -> None:
    scored = scored_text([[b"A", b"A", b"B"]], [(0, 4)])
    ids, logprobs, tail = align(scored, [(0, 4)], {b"A": 1, b"B": 2})
    assert ids[0, :2].tolist() == [1, 2]
    assert np.exp(logprobs[0]).tolist() == pytest.approx([0.4, 0.2, 0])
    assert math.exp(tail[0]) == pytest.approx(0.4)


def test_long_example_is_cut_and_one_without_room_is_left_out(
    tiny_student: Path, make_examples: Examples, shards: list[Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    [example, scored] = make_examples(1)[0], next(iter(read_shards(shards)))
    whole = LessonMaker(tokenizer, max_tokens=128).make(example, scored)
    assert whole is not None
    assert whole.ids[-1] == tokenizer.eos_token_id
    cut = LessonMaker(tokenizer, max_tokens=whole.prompt_tokens + 3).make(example, scored)
    assert cut is not None
    assert cut.answer_tokens == len(cut.top_ids) == 3
    assert LessonMaker(tokenizer, max_tokens=whole.prompt_tokens).make(example, scored) is None


def test_run_without_room_for_any_answer_is_refused(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    small = RECIPE.model_copy(update={"max_tokens": 16})
    with pytest.raises(StageFailedError, match=r"None of the 4 training examples leaves room .* within 16 tokens"):
        train(make_examples(4), tiny_student, shards, tmp_path, recipe=small)


def test_soft_targets_of_another_dataset_are_refused(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(StageFailedError, match="2 of 12 training examples have no soft targets, such as 'example-11'"):
        train(make_examples(12), tiny_student, shards, tmp_path)
    other = [example.model_copy(update={"target": "another"}) for example in make_examples(2)]
    with pytest.raises(StageFailedError, match="are of another text"):
        train(other, tiny_student, shards, tmp_path)


def test_loss_that_is_not_a_number_stops_the_run(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    wild = RECIPE.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(StageFailedError, match=r"not a number at step \d+ of 5. Lower learning_rate"):
        train(make_examples(10), tiny_student, shards, tmp_path, recipe=wild)


def test_all_linear_recipe_trains_every_layer(
    tiny_student: Path, make_examples: Examples, shards: list[Path], tmp_path: Path
) -> None:
    done = train(
        make_examples(4),
        tiny_student,
        shards,
        tmp_path,
        recipe=RECIPE.model_copy(update={"target_modules": "all-linear"}),
    )
    names = set(load_file(done.adapter_dir / "adapter_model.safetensors"))
    assert any("down_proj" in name for name in names)
    assert not any("lm_head" in name for name in names)
