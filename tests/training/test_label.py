from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from everswarm.errors import BadRequestError, NoSpaceError, StageFailedError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets, Teacher
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation import hindsight_teacher, label
from everswarm.training.distillation.prompts import teacher_messages
from everswarm.training.distillation.target_shards import read_shards, write_shard

Examples = Callable[[int], list[Example]]
TEACHER = hindsight_teacher("tiny/student", "0" * 64)


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
    examples: list[Example], weights: Path, out_dir: Path, store: Store, *, teacher: Teacher = TEACHER, **options: Any
) -> SoftTargets:
    options = {"done": LabelCheckpoint(), "shard_examples": 2, "top_k": 5} | options
    return label(
        examples,
        dataset="1" * 64,
        weights=weights,
        teacher=teacher,
        out_dir=out_dir,
        store_shard=store.store,
        on_checkpoint=store.checkpoints.append,
        **options,
    )


def test_scores_are_those_of_the_whole_forward_pass(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    example = make_examples(1)[0]
    store = Store()
    record = run([example], tiny_student, tmp_path, store)
    [scored] = read_shards(store.paths)
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    model = AutoModelForCausalLM.from_pretrained(tiny_student).eval()
    prompt = prompt_ids(tokenizer, teacher_messages(example, TEACHER))
    answer = [*answer_ids(tokenizer, example.target), tokenizer.eos_token_id]
    with torch.inference_mode():
        logprobs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1).numpy()
    assert scored.logprob == pytest.approx(logprobs[np.arange(len(answer)), answer], rel=2**-11)
    top = -np.sort(-logprobs, axis=1)[:, :5]
    assert scored.top_logprob == pytest.approx(top, rel=2**-11)
    assert np.exp(scored.tail_logprob) + np.exp(scored.top_logprob).sum(1) == pytest.approx(1.0, abs=5e-3)
    assert scored.text == example.target.encode()
    assert (scored.start[-1], scored.end[-1]) == (len(scored.text), len(scored.text))
    assert record.tokens == len(answer)
    assert record.text_bytes == len(scored.text)
    assert record.top_k_mass == pytest.approx(float(np.exp(top).sum(1).mean()), abs=1e-3)


def test_every_token_is_a_candidate_when_k_is_the_vocabulary(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    store = Store()
    run(make_examples(1), tiny_student, tmp_path, store, top_k=100_000)
    [scored] = read_shards(store.paths)
    assert np.isneginf(scored.tail_logprob).all()
    assert np.exp(scored.top_logprob.astype(np.float64)).sum(1) == pytest.approx(1.0, abs=1e-3)
    assert all(row.count(b"") == 1 for row in scored.top_bytes)  # the end of turn, by no tokenizer's name


def test_interrupted_run_gives_the_same_digest(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    examples = make_examples(5)
    whole = run(examples, tiny_student, tmp_path / "a", Store())
    killed = Store(fail_at=2)
    with pytest.raises(RuntimeError):
        run(examples, tiny_student, tmp_path / "b", killed)
    assert len(killed.checkpoints[-1].shards) == 2
    again = Store()
    resumed = run(examples, tiny_student, tmp_path / "c", again, done=killed.checkpoints[-1])
    assert len(again.paths) == 1  # only what was missing was scored
    assert resumed == whole
    assert whole.digest == hashlib.sha256("".join(shard.sha256 for shard in whole.shards).encode()).hexdigest()


def test_finished_cache_is_not_scored_again(make_examples: Examples, tmp_path: Path, tiny_student: Path) -> None:
    store = Store()
    whole = run(make_examples(2), tiny_student, tmp_path, store)
    nowhere = tmp_path / "no-weights"
    assert run(make_examples(2), nowhere, tmp_path, Store(), done=store.checkpoints[-1]) == whole


def test_test_split_is_never_scored(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    examples = make_examples(3)
    examples[1] = examples[1].model_copy(update={"split": "test"})
    examples[2] = examples[2].model_copy(update={"split": "validation"})
    store = Store()
    run(examples, tiny_student, tmp_path, store)
    assert [scored.id for scored in read_shards(store.paths)] == ["example-1", "example-3"]
    with pytest.raises(StageFailedError, match="no training examples to label"):
        run([examples[1]], tiny_student, tmp_path, Store())


def test_long_target_is_scored_up_to_the_limit(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    example = make_examples(1)[0].model_copy(update={"target": "metres are " * 200})
    store = Store()
    record = run([example], tiny_student, tmp_path, store, max_target_tokens=7)
    [scored] = read_shards(store.paths)
    assert record.tokens == 7
    assert example.target.encode().startswith(scored.text)
    assert scored.end[-1] == len(scored.text) > scored.start[-1]


def test_conversation_longer_than_the_context_keeps_its_end(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    example = make_examples(1)[0].model_copy(update={"messages": [Message(role="user", content="x y " * 600)]})
    assert run([example], tiny_student, tmp_path, Store()).tokens > 3


def test_teacher_with_hindsight_reads_the_correction_first(make_examples: Examples) -> None:
    example = make_examples(1)[0]
    asked = teacher_messages(example, TEACHER)
    assert [message.role for message in asked] == ["user", "assistant", "user"]
    assert asked[0] == asked[2]
    assert asked[1].content == example.target
    plain = TEACHER.model_copy(update={"hindsight": False, "template": "plain-1"})
    assert teacher_messages(example, plain) == example.messages
    with pytest.raises(BadRequestError, match="has the template 'ask-again-1', not 'other'"):
        teacher_messages(example, TEACHER.model_copy(update={"template": "other"}))


def test_teacher_that_is_not_a_number_is_refused(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(tmp_path / "broken")
    with pytest.raises(StageFailedError, match="not numbers for example 'example-1'"):
        run(make_examples(1), tmp_path / "broken", tmp_path, Store())


def test_progress_counts_examples(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    run(
        make_examples(3),
        tiny_student,
        tmp_path,
        Store(),
        on_progress=lambda done, total, _note: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_same_texts_give_the_same_bytes(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    store = Store()
    run(make_examples(2), tiny_student, tmp_path, store)
    write_shard(list(read_shards(store.paths)), tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == store.paths[0].read_bytes()


def test_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(StageFailedError, match=r"shard.parquet is not a shard of soft targets"):
        list(read_shards([path]))


def test_full_disk_is_told_as_such_and_leaves_no_half_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(_table: Any, path: Path, **_options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(NoSpaceError):
        write_shard([], tmp_path / "shard.parquet")
    assert not (tmp_path / "shard.parquet").exists()
