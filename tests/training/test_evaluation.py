"""Evaluation of a tiny student in torch; the llama.cpp side is replaced here, and real in test_llama_score."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everswarm.errors import BadRequestError, StageFailedError
from everswarm.schemas.dataset import Example
from everswarm.training.evaluation import AdapterFiles, evaluate, findings, general_suite
from everswarm.training.evaluation.hf_score import HfModel, batches, until_end
from everswarm.training.evaluation.llama_score import LlamaJob, LlamaResult, LlamaTextResult
from everswarm.training.evaluation.texts import TokenizedText, decode, load_tokenizer, shared_prefix, tokenize
from everswarm.training.llama_library import LlamaScorerUnavailableError

MakeExamples = Callable[[int], list[Example]]


def make_adapter(base: Path, folder: Path, *, scale: float = 0.5) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weights in wrapped.named_parameters():
            if "lora_" in name:
                weights.copy_(torch.randn(weights.shape, generator=generator) * scale)
    wrapped.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_student, tmp_path_factory.mktemp("adapter"))


def fake_llama(job: LlamaJob, *, work_dir: Path, on_text: Callable[[], None]) -> LlamaResult:
    """Every token is a coin toss; a subject with an adapter is a little surer."""
    subjects = {}
    for name, path in job.subjects.items():
        logprob = math.log(0.5 if path is None else 0.6)
        subjects[name] = [
            LlamaTextResult(logprobs=[logprob] * len(text.answer), generated=text.answer if text.generate else None)
            for text in job.texts
        ]
        for _ in job.texts:
            on_text()
    return LlamaResult(engine="fake", subjects=subjects)


def test_scores_equal_a_plain_forward_pass_with_and_without_the_adapter(
    tiny_student: Path, adapter: Path, make_examples: MakeExamples
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(tiny_student)
    examples = [
        make_examples(1)[0].model_copy(update={"target": "3 km are 3000 m. " * times, "id": str(times)})
        for times in (1, 7, 2, 30)
    ]
    texts = [tokenize(example, tokenizer) for example in examples]
    model = HfModel(tiny_student, adapters={"candidate": adapter}, threads=1)
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_student), dtype=torch.float32)
    for name in (None, "candidate"):
        oracle = plain if name is None else PeftModel.from_pretrained(plain, str(adapter)).eval()
        with model.use(name):
            found = [score.logprob for score in model.score(texts)]
        assert found == pytest.approx([slow_logprob(oracle, text) for text in texts], rel=1e-4)


def slow_logprob(model: Any, text: TokenizedText) -> float:
    import torch

    ids = torch.tensor([text.prompt_ids + text.answer_ids])
    with torch.inference_mode():
        rows = model(ids).logits[0].log_softmax(dim=1)
    start = len(text.prompt_ids) - 1
    return float(sum(rows[start + step, token] for step, token in enumerate(text.answer_ids)))


def test_batched_greedy_answers_equal_single_ones(tiny_student: Path, make_examples: MakeExamples):
    tokenizer = load_tokenizer(tiny_student)
    prompts = [tokenize(example, tokenizer).prompt_ids for example in make_examples(11)[::5]]
    model = HfModel(tiny_student, adapters={}, threads=1)
    together = model.answer(prompts, limit_tokens=6, pad_id=tokenizer.pad_token_id)

    assert together == [model.answer([p], limit_tokens=6, pad_id=tokenizer.pad_token_id)[0] for p in prompts]
    assert all(len(answer) <= 6 for answer in together)


def test_answers_end_before_the_end_token():
    assert until_end([5, 6, 2, 7, 2], [2]) == [5, 6]
    assert until_end([5, 6], [2]) == [5, 6]


def test_batches_hold_every_text_once():
    texts = [TokenizedText(str(n), [1] * n, [1], 1) for n in (3, 700, 12, 150, 150, 9)]
    groups = batches(texts, prefix_tokens=2)

    assert sorted(index for group in groups for index in group) == list(range(6))
    assert groups[0] == [1]


def test_shared_prefix_leaves_each_prompt_a_token_of_its_own():
    assert shared_prefix([TokenizedText("a", [1, 2, 3], [4], 1), TokenizedText("b", [1, 2, 9, 9], [4], 1)]) == [1, 2]
    assert shared_prefix([TokenizedText("a", [1, 2], [4], 1), TokenizedText("b", [1, 2, 3], [4], 1)]) == [1]
    assert shared_prefix([]) == []


def test_overlong_text_keeps_the_question_and_the_start_of_the_answer(tiny_student: Path, make_examples: MakeExamples):
    tokenizer = load_tokenizer(tiny_student)
    example = make_examples(1)[0].model_copy(update={"target": "3000 m " * 50})
    whole, cut = tokenize(example, tokenizer), tokenize(example, tokenizer, max_tokens=20)

    assert cut.answer_ids == whole.answer_ids[:10]
    assert cut.prompt_ids == whole.prompt_ids[-10:]
    assert cut.answer_bytes == len(decode(cut.answer_ids, tokenizer).encode()) or cut.answer_bytes < whole.answer_bytes


def test_end_of_turn_is_not_part_of_the_scored_answer(tiny_student: Path, make_examples: MakeExamples):
    tokenizer = load_tokenizer(tiny_student)
    example = make_examples(1)[0]
    text = tokenize(example, tokenizer)

    assert tokenizer.eos_token_id not in text.answer_ids
    assert tokenizer.decode(text.answer_ids) == example.target
    assert text.answer_bytes == len(example.target.encode())


def run_evaluation(student: Path, adapter: Path, work_dir: Path, test: list[Example], **options: Any):
    return evaluate(
        **(
            {
                "test": test,
                "general": general_suite()[:3],
                "base_hf": student,
                "base_gguf": work_dir / "base.gguf",
                "candidate": AdapterFiles(adapter, work_dir / "adapter.gguf"),
                "work_dir": work_dir,
                "answer_limit": 2,
                "max_answer_tokens": 8,
                "seed": 0,
            }
            | options
        )
    )


def test_evaluation_has_every_metric_for_every_subject_and_both_weights(
    tiny_student: Path, adapter: Path, make_examples: MakeExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(findings, "score_with_llama", fake_llama)
    steps: list[tuple[int, int]] = []
    files = AdapterFiles(adapter, tmp_path / "incumbent.gguf")
    found = run_evaluation(
        tiny_student,
        adapter,
        tmp_path,
        make_examples(4),
        incumbent=files,
        on_progress=lambda done, total, _note: steps.append((done, total)),
    )
    names = {(s.suite, s.subject, s.weights, s.metric) for s in found.scores}
    subjects = ("base", "incumbent", "candidate")
    likelihood = {
        (suite, subject, weights, metric)
        for suite in ("test", "general")
        for subject in subjects
        for weights in ("hf", "gguf")
        for metric in ("bits_per_byte", "perplexity")
    }
    words = {
        ("test", subject, weights, metric)
        for subject in subjects
        for weights in ("hf", "gguf")
        for metric in ("bleu", "rouge_l")
    }
    assert names == likelihood | words
    assert len(found.comparisons) == len(names) * 2 // 3
    assert {comparison.baseline for comparison in found.comparisons} == {"base", "incumbent"}
    assert found.engines["gguf"] == "fake"
    assert [set(answer.answers) for answer in found.answers] == [
        {f"{subject}/{weights}" for subject in subjects for weights in ("hf", "gguf")}
    ] * 2
    assert found.answers[0].answers["base/gguf"] == found.answers[0].reference
    assert steps[-1] == (42, 42)
    (same,) = [
        c
        for c in found.comparisons
        if (c.suite, c.weights, c.metric, c.baseline) == ("test", "hf", "bits_per_byte", "incumbent")
    ]
    assert (same.low, same.difference, same.high) == (0, 0, 0)
    (surer,) = [
        c
        for c in found.comparisons
        if (c.suite, c.weights, c.metric, c.baseline) == ("general", "gguf", "perplexity", "base")
    ]
    assert surer.baseline_value == pytest.approx(2)
    assert surer.difference == pytest.approx(1 / 0.6 - 2)


def test_no_answers_asked_for_means_no_bleu_and_no_rouge(
    tiny_student: Path, adapter: Path, make_examples: MakeExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(findings, "score_with_llama", fake_llama)
    found = run_evaluation(tiny_student, adapter, tmp_path, make_examples(2), answer_limit=0)

    assert {score.metric for score in found.scores} == {"bits_per_byte", "perplexity"}
    assert found.answers == []


def test_where_llama_cannot_be_called_the_record_says_what_scored_instead(
    tiny_student: Path, adapter: Path, make_examples: MakeExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unavailable(*_args: object, **_options: object) -> LlamaResult:
        raise LlamaScorerUnavailableError("xllamacpp.pyd exports no llama_decode on this platform.")

    def without_gguf(folder: Path, *, adapters: Any, threads: int, gguf_file: str | None = None) -> HfModel:
        asked.append(gguf_file)
        return HfModel(tiny_student, adapters=adapters, threads=threads)

    asked: list[str | None] = []
    monkeypatch.setattr(findings, "score_with_llama", unavailable)
    monkeypatch.setattr(findings, "HfModel", without_gguf)
    found = run_evaluation(tiny_student, adapter, tmp_path, make_examples(2))

    assert asked == [None, "base.gguf"]
    assert "dequantised base" in found.engines["gguf"]
    assert "exports no llama_decode on this platform" in found.engines["gguf"]


def test_broken_weights_are_named_instead_of_scored(tiny_student: Path, make_examples: MakeExamples, tmp_path: Path):
    broken = make_adapter(tiny_student, tmp_path / "broken", scale=math.nan)
    with pytest.raises(StageFailedError, match=r"The candidate's score .* is not a number"):
        run_evaluation(tiny_student, broken, tmp_path, make_examples(2))


def test_empty_suite_is_refused(tmp_path: Path):
    with pytest.raises(BadRequestError, match="a suite is empty"):
        run_evaluation(tmp_path, tmp_path, tmp_path, [])


def test_general_suite_is_forty_different_short_pairs():
    suite = general_suite()

    assert len(suite) == len({item.id for item in suite}) == len({item.messages[0].content for item in suite}) == 40
    assert all(0 < len(item.target) <= 120 and item.target == item.target.strip() for item in suite)


def test_door_of_the_package_loads_no_tensors():
    import subprocess

    code = (
        "import sys, everswarm.training.evaluation, everswarm.training.curation; "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
