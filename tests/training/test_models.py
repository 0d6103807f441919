from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from everswarm.errors import BadRequestError, NoSpaceError
from everswarm.llm.pull import GgufFile
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training import models
from everswarm.training.models import load_student, student_weights

MODEL = "maker/tiny"


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A model that is here already and converts to eight bytes; returns the conversions made."""
    gguf = tmp_path / "maker--tiny" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    made: list[Path] = []

    def convert(source: Path, into: Path) -> None:
        made.append(into)
        into.mkdir()
        (into / "model.safetensors").write_bytes(b"weights!")

    monkeypatch.setattr(models, "pull_gguf", lambda model, _folder, on_progress=None: GgufFile(gguf, "a" * 64, model))
    monkeypatch.setattr(models, "convert_gguf", convert)
    return made


def test_weights_are_made_once(conversions: list[Path], tmp_path: Path) -> None:
    said: list[str] = []
    first = student_weights(MODEL, tmp_path, on_progress=said.append)
    assert student_weights(MODEL, tmp_path) == first
    assert len(conversions) == 1
    assert said == ["making the training weights of maker/tiny from its GGUF (once)"]
    assert first.folder == tmp_path / "maker--tiny" / "hf"
    assert first.sha256 == hashlib.sha256(b"weights!").hexdigest()
    assert (first.gguf_sha256, first.gguf.name) == ("a" * 64, "model.gguf")


def test_weights_of_another_gguf_or_cut_short_are_made_again(conversions: list[Path], tmp_path: Path) -> None:
    weights = student_weights(MODEL, tmp_path)
    stamp = weights.folder / "everswarm.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"gguf_sha256": "b" * 64}))
    assert student_weights(MODEL, tmp_path) == weights
    (weights.folder / "model.safetensors").write_bytes(b"cut")
    assert student_weights(MODEL, tmp_path) == weights
    assert len(conversions) == 3
    assert (weights.folder / "model.safetensors").read_bytes() == b"weights!"


def test_full_disk_leaves_nothing_behind(
    conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, into: Path) -> None:
        into.mkdir()
        (into / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # what safetensors raises

    monkeypatch.setattr(models, "convert_gguf", full)
    with pytest.raises(NoSpaceError, match=r"is full\. Nothing was half-written"):
        student_weights(MODEL, tmp_path)
    assert {path.name for path in (tmp_path / "maker--tiny").iterdir()} == {"model.gguf", "hf.lock"}


def test_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequestError, match="'nobody/nothing' cannot be pulled"):
        student_weights("nobody/nothing", tmp_path)


@pytest.mark.model
def test_embedded_model_answers_from_its_training_weights() -> None:
    import torch

    weights = student_weights(EMBEDDED_MODEL, load_settings().models_dir)
    # the digest is the identity of the base that adapters are bound to, so every machine must find this one
    assert weights.sha256 == "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd"
    model, tokenizer = load_student(weights.folder, threads=1)
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.model
def test_tokenizer_cuts_digits_as_llama_cpp_does() -> None:
    """Ids from llama.cpp's own tokenizer; without the rule for digits the blank line would be two tokens."""
    _, tokenizer = load_student(student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder, threads=1)
    assert tokenizer.tokenize("a\n\n1. b  12") == ["a", "ĊĊ", "1", ".", "Ġb", "ĠĠ", "1", "2"]
