"""A teacher from a GGUF in llama.cpp, against the same model's Hugging Face weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import sha256_of
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.settings import EMBEDDED_MODEL, TeacherSettings, load_settings
from everswarm.training.distillation.prompts import end_of_turn_id, prompt_ids, teacher_messages
from everswarm.training.distillation.teachers import Text
from everswarm.training.distillation.teachers import gguf as gguf_module
from everswarm.training.distillation.teachers.gguf import (
    GgufTeacher,
    gguf_quantization,
    gguf_revision,
    open_gguf_teacher,
)
from everswarm.training.distillation.teachers.weights import WeightsTeacher
from everswarm.training.llama_library import LlamaError
from everswarm.training.models import StudentWeights, load_student, student_weights

TARGETS = ["Paris is the capital of France.", "1. Mix  12 g flour.\n\n2. Bake it: 20 min at 180 °C 🍞", "<|im_end|>"]


@pytest.fixture(scope="module")
def real_model() -> StudentWeights:
    return student_weights(EMBEDDED_MODEL, load_settings().models_dir)


@pytest.fixture(scope="module")
def teacher(real_model: StudentWeights) -> Iterator[GgufTeacher]:
    opened = GgufTeacher(real_model.gguf, model=EMBEDDED_MODEL)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    return [
        Text(
            Example(
                id=f"e{number}",
                user="ada",
                split="train",
                messages=[Message(role="user", content="What do you know?")],
                target=target,
                source="correction",
            ),
            target,
            "target",
        )
        for number, target in enumerate(TARGETS)
    ]


@pytest.mark.model
def test_same_model_says_the_same_as_gguf_and_as_weights(
    real_model: StudentWeights, teacher: GgufTeacher, texts: list[Text]
) -> None:
    expected = list(WeightsTeacher(real_model.folder, model=EMBEDDED_MODEL).label(texts))
    found = list(teacher.label(texts))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.end.tolist() == theirs.end.tolist()
        assert (ours.text, ours.ended) == (theirs.text, theirs.ended)
        assert ours.logprob == pytest.approx(theirs.logprob, abs=0.8)
        assert float(ours.logprob.mean()) == pytest.approx(float(theirs.logprob.mean()), abs=0.1)
        same = [
            ours.vocabulary[a] == theirs.vocabulary[b] for a, b in zip(ours.top[:, 0], theirs.top[:, 0], strict=True)
        ]
        assert np.mean(same) > 0.8
        mass = np.exp(ours.top_logprob.astype(np.float64)).sum(1) + np.exp(ours.tail_logprob.astype(np.float64))
        assert mass == pytest.approx(1.0, abs=1e-5)
    assert teacher.top_k == 20


@pytest.mark.model
def test_prompt_and_end_of_turn_are_those_of_transformers(
    real_model: StudentWeights, teacher: GgufTeacher, texts: list[Text]
) -> None:
    _, tokenizer = load_student(real_model.folder, threads=1)
    for text in texts:
        messages = teacher_messages(text.example, True)
        assert teacher.prompt_ids(messages) == prompt_ids(tokenizer, messages, "chat")
    assert teacher._vocabulary.end_of_turn == end_of_turn_id(tokenizer)  # llama.cpp itself takes <|endoftext|> for it
    plain = GgufTeacher(real_model.gguf, model=EMBEDDED_MODEL, template="plain")
    assert plain.prompt_ids(messages) == prompt_ids(tokenizer, messages, "plain")
    assert not plain.score(texts[0]).ended
    plain.close()


@pytest.mark.model
def test_score_does_not_depend_on_what_was_read_before(teacher: GgufTeacher, texts: list[Text]) -> None:
    first = teacher.score(texts[1])
    teacher.score(texts[0])
    again = teacher.score(texts[1])
    assert first.logprob.tobytes() == again.logprob.tobytes()
    assert first.top.tobytes() == again.top.tobytes()


@pytest.mark.model
def test_record_is_known_before_anything_is_loaded(real_model: StudentWeights, tmp_path: Path) -> None:
    asked = TeacherSettings(source="gguf", model=str(real_model.gguf), hindsight=False)
    opener = open_gguf_teacher(
        asked,
        path=real_model.gguf,
        model=EMBEDDED_MODEL,
        revision=gguf_revision(real_model.gguf),
        quantization=gguf_quantization(real_model.gguf),
        threads=1,
    )
    assert opener.teacher.quantization == "Q4_1"
    assert opener.teacher.revision == real_model.gguf_sha256
    assert opener.teacher.template == "chat-1/as-asked-1"


def test_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    with pytest.raises(StageFailedError, match="There is no GGUF file at"):
        gguf_revision(path)
    path.write_bytes(b"not a model at all")
    with pytest.raises(StageFailedError, match="cannot be read as a GGUF"):
        gguf_quantization(path)
    pytest.importorskip("xllamacpp", reason="needs llama.cpp, of the extra 'engine'")
    with pytest.raises(LlamaError, match=r"broken\.gguf cannot be loaded as a model"):
        GgufTeacher(path, model="broken")


def test_revision_of_a_file_in_parts_covers_them_all(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"a")
    second.write_bytes(b"b")
    before = gguf_revision(first)
    second.write_bytes(b"c")
    assert gguf_revision(first) != before
    (tmp_path / "alone.gguf").write_bytes(b"a")
    assert gguf_revision(tmp_path / "alone.gguf") == sha256_of(first)


def test_row_is_cut_to_the_top_and_everything_else() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 64 * 30).astype(np.float32)
    logits[5] = 40.0  # its name is unknown, so it is in the tail
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    own, top, values, tail = gguf_module._cut(logits, 7, k=4, nameless=[5])
    named = np.delete(np.arange(len(logits)), 5)
    expected = named[np.argsort(-logits[named])][:4]
    assert top.tolist() == expected.tolist()
    assert own == pytest.approx(exact[7], abs=1e-5)
    assert values == pytest.approx(exact[expected], abs=1e-5)
    assert np.exp(tail) == pytest.approx(1 - np.exp(exact[expected]).sum(), abs=1e-6)
