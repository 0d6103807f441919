"""Scoring in llama.cpp through ctypes, on the real small model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from everswarm.errors import StageFailedError
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training import llama_library
from everswarm.training.evaluation import general_suite, llama_score
from everswarm.training.evaluation.llama_score import (
    LlamaJob,
    LlamaText,
    answer_logprobs,
    log_softmax_at,
    run_job,
    score_with_llama,
)
from everswarm.training.evaluation.texts import TokenizedText, load_tokenizer, shared_prefix, tokenize
from everswarm.training.llama_library import (
    LlamaError,
    LlamaModel,
    LlamaScorerUnavailableError,
    library_path,
    load_library,
)
from everswarm.training.models import student_weights


class RealModel(NamedTuple):
    hf: Path
    gguf: Path


@pytest.fixture(scope="module")
def real_model() -> RealModel:
    weights = student_weights(EMBEDDED_MODEL, load_settings().models_dir)
    return RealModel(weights.folder, weights.gguf)


@pytest.fixture(scope="module")
def texts(real_model: RealModel) -> list[TokenizedText]:
    tokenizer = load_tokenizer(real_model.hf)
    return [tokenize(example, tokenizer) for example in general_suite()]


@pytest.fixture(scope="module")
def adapter_gguf(real_model: RealModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA on the first query projection, written as llama.cpp's converter writes it."""
    import gguf

    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for half, shape in (("lora_a", (8, 576)), ("lora_b", (576, 8))):
        writer.add_tensor(f"blk.0.attn_q.weight.{half}", generator.normal(0, 0.1, shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(real_model: RealModel) -> Iterator[LlamaModel]:
    loaded = LlamaModel(real_model.gguf, context_tokens=512, threads=1, sequences=2)
    yield loaded
    loaded.close()


def job_of(
    real_model: RealModel, texts: list[TokenizedText], *, generate: int = 0, **subjects: Path | None
) -> LlamaJob:
    return LlamaJob(
        base_gguf=real_model.gguf,
        subjects=subjects,
        texts=[
            LlamaText(prompt=text.prompt_ids, answer=text.answer_ids, generate=index < generate)
            for index, text in enumerate(texts)
        ],
        prefix_tokens=len(shared_prefix(texts)),
        max_answer_tokens=8,
        threads=1,
    )


@pytest.mark.model
def test_both_tokenizers_give_the_same_ids(real_model: RealModel, model: LlamaModel, texts: list[TokenizedText]):
    tokenizer = load_tokenizer(real_model.hf)
    for example, text in zip(general_suite(), texts, strict=True):
        messages = [message.model_dump() for message in example.messages]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert model.tokenize(prompt) == text.prompt_ids
        assert model.tokenize(example.target) == text.answer_ids


@pytest.mark.model
def test_scores_repeat_to_the_bit_and_the_adapter_comes_off_again(
    real_model: RealModel, texts: list[TokenizedText], adapter_gguf: Path
):
    job = job_of(real_model, texts[:5], generate=2, base=None, candidate=adapter_gguf, again=None)
    steps: list[None] = []
    first = run_job(job, on_text=lambda: steps.append(None))

    assert first.subjects["base"] == first.subjects["again"]
    assert first.subjects["base"] != first.subjects["candidate"]
    assert first == run_job(job, on_text=lambda: None)
    assert len(steps) == 15
    assert [text.generated is not None for text in first.subjects["base"]] == [True, True, False, False, False]
    assert all(
        len(row.logprobs) == len(text.answer_ids) for row, text in zip(first.subjects["base"], texts, strict=False)
    )


@pytest.mark.model
def test_score_does_not_depend_on_the_prefix_that_was_kept_or_on_its_neighbours(
    model: LlamaModel, texts: list[TokenizedText]
):
    text = LlamaText(prompt=texts[0].prompt_ids, answer=texts[0].answer_ids)
    model.use_adapter(None)
    alone = answer_logprobs(model, text, prefix_tokens=0)
    answer_logprobs(
        model, LlamaText(prompt=texts[1].prompt_ids, answer=texts[1].answer_ids), prefix_tokens=0, sequence=1
    )

    assert answer_logprobs(model, text, prefix_tokens=0) == alone
    assert answer_logprobs(model, text, prefix_tokens=10) == pytest.approx(alone, abs=0.3)


@pytest.mark.model
def test_likelihood_is_near_that_of_the_full_weights(
    real_model: RealModel, model: LlamaModel, texts: list[TokenizedText]
):
    from everswarm.training.evaluation.hf_score import HfModel

    chosen = texts[:6]
    full = sum(score.logprob for score in HfModel(real_model.hf, adapters={}, threads=1).score(chosen))
    model.use_adapter(None)
    quantised = sum(
        sum(answer_logprobs(model, LlamaText(prompt=text.prompt_ids, answer=text.answer_ids), prefix_tokens=0))
        for text in chosen
    )
    assert quantised == pytest.approx(full, rel=0.05)


@pytest.mark.model
def test_child_gives_what_the_same_job_gives_here(
    real_model: RealModel, texts: list[TokenizedText], adapter_gguf: Path, tmp_path: Path
):
    job = job_of(real_model, texts[:2], generate=1, base=None, candidate=adapter_gguf)
    steps: list[None] = []

    assert score_with_llama(job, work_dir=tmp_path, on_text=lambda: steps.append(None)) == run_job(
        job, on_text=lambda: None
    )
    assert len(steps) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_a_file_that_is_no_adapter_is_refused_with_llamas_own_words(
    real_model: RealModel, texts: list[TokenizedText], tmp_path: Path
):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    job = job_of(real_model, texts[:1], candidate=tmp_path / "broken.gguf")

    with pytest.raises(LlamaError, match=r"broken\.gguf cannot be loaded as an adapter .* llama\.cpp said: .+"):
        score_with_llama(job, work_dir=tmp_path)


def fake_child(code: str):
    def start(_arguments: object, *, stdout: int, stderr: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            text=True,  # type: ignore[call-overload]
        )

    return start


EMPTY_JOB = LlamaJob(base_gguf=Path("b"), subjects={}, texts=[], prefix_tokens=0, max_answer_tokens=1, threads=1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_native_crash_makes_the_scorer_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(llama_score, "start_python_child", fake_child(crash))
    with pytest.raises(LlamaScorerUnavailableError, match="crashed while scoring"):
        score_with_llama(EMPTY_JOB, work_dir=tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_child_fails_the_stage_and_says_that_memory_may_be_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    killed = (
        "import os, signal, sys; print('loading', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    monkeypatch.setattr(llama_score, "start_python_child", fake_child(killed))
    with pytest.raises(StageFailedError, match=r"exit code -9\. Its last words: loading\. .*memory was short"):
        score_with_llama(EMPTY_JOB, work_dir=tmp_path)


def test_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama_library.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LlamaScorerUnavailableError, match=r"everswarm\[engine\]"):
        library_path()


def test_library_without_the_functions_is_unavailable():
    import _ctypes

    with pytest.raises(LlamaScorerUnavailableError, match="exports no llama_"):
        load_library(Path(_ctypes.__file__))


def test_file_that_is_no_library_is_unavailable(tmp_path: Path):
    (tmp_path / "xllamacpp.so").write_bytes(b"not a library")
    with pytest.raises(LlamaScorerUnavailableError, match="cannot be loaded"):
        load_library(tmp_path / "xllamacpp.so")


def test_log_softmax_is_exact_for_large_logits():
    logits = np.array([1000.0, 1001.0, 999.0], dtype=np.float32)
    expected = 1000.0 - (1001.0 + np.log(np.exp(-1.0) + 1 + np.exp(-2.0)))
    assert log_softmax_at(logits, 0) == pytest.approx(expected)
