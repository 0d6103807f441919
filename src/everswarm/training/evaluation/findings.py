"""What each subject says and how likely it finds the references, in torch and in llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from everswarm.errors import StageFailedError
from everswarm.schemas.evaluation import Subject
from everswarm.training.evaluation.hf_score import HfModel
from everswarm.training.evaluation.llama_score import LlamaJob, LlamaText, score_with_llama
from everswarm.training.evaluation.texts import (
    QuestionAnswer,
    TextScore,
    TokenizedText,
    decode,
    shared_prefix,
    tokenize,
)
from everswarm.training.llama_library import LlamaScorerUnavailableError

OnProgress = Callable[[int, int, str], None]  # done, total, note


class AdapterFiles(NamedTuple):
    """One adapter in both formats."""

    folder: Path  # adapter_model.safetensors and adapter_config.json (PEFT)
    gguf: Path


class Findings(NamedTuple):
    """What one kind of weights gave: by subject, in the order of the texts and of the questions."""

    engine: str
    scores: dict[Subject, list[TextScore]]
    answers: dict[Subject, list[str]]


class Plan(NamedTuple):
    """The texts of both suites, test first, as all engines read them."""

    texts: list[TokenizedText]
    questions: int  # of the first texts, answered in words too
    answer_tokens: int
    threads: int
    tokenizer: Any


def make_plan(
    examples: Sequence[QuestionAnswer], *, questions: int, tokenizer: Any, max_answer_tokens: int, threads: int
) -> Plan:
    """Tokenize all examples; the first `questions` are answered in words too.

    An answer may run to twice the longest reference and 16 tokens more: BLEU and ROUGE punish it long before.
    """
    texts = [tokenize(example, tokenizer) for example in examples]
    longest = max((len(text.answer_ids) for text in texts[:questions]), default=0)
    return Plan(texts, questions, min(max_answer_tokens, 2 * longest + 16), threads, tokenizer)


class Steps:
    """Counts texts over all subjects and weights."""

    def __init__(self, *, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def add(self, count: int, note: str) -> None:
        """Report `count` more texts."""
        self._done += count
        self._on_progress(min(self._done, self._total), self._total, note)


def find_in_torch(
    plan: Plan,
    folder: Path,
    adapters: Mapping[Subject, AdapterFiles],
    steps: Steps,
    *,
    gguf_file: str | None = None,
    engine: str = "",
) -> Findings:
    """Return what the weights in `folder`, or its `gguf_file` dequantised, give in torch.

    Raises:
        StageFailedError: a score is not a number.
    """
    import torch
    import transformers

    model = HfModel(
        folder,
        adapters={name: files.folder for name, files in adapters.items()},
        threads=plan.threads,
        gguf_file=gguf_file,
    )
    scores: dict[Subject, list[TextScore]] = {}
    answers: dict[Subject, list[str]] = {}
    prompts = [text.prompt_ids for text in plan.texts[: plan.questions]]
    pad_id = plan.tokenizer.pad_token_id if plan.tokenizer.pad_token_id is not None else plan.tokenizer.eos_token_id
    for subject in _subjects(adapters):
        note = f"{subject}, {'quantised weights in torch' if gguf_file else 'HF weights'}"
        with model.use(None if subject == "base" else subject):
            scores[subject] = model.score(plan.texts, on_texts=lambda count, note=note: steps.add(count, note))  # type: ignore[misc]
            ids = model.answer(prompts, limit_tokens=plan.answer_tokens, pad_id=pad_id)
        answers[subject] = [decode(answer, plan.tokenizer) for answer in ids]
        _require_numbers(scores[subject], subject, note)
    engine = engine or f"torch {torch.__version__}, transformers {transformers.__version__}, float32"
    return Findings(engine, scores, answers)


def find_quantised(
    plan: Plan, base_gguf: Path, adapters: Mapping[Subject, AdapterFiles], steps: Steps, *, work_dir: Path
) -> Findings:
    """Return what the GGUF files give in llama.cpp, or in torch where llama.cpp cannot be called."""
    try:
        return find_in_llama(plan, base_gguf, adapters, steps, work_dir=work_dir)
    except LlamaScorerUnavailableError as error:
        import torch

        engine = (
            f"torch {torch.__version__} on the dequantised base and the float32 adapter, "
            f"because llama.cpp could not be used: {error}"
        )
        return find_in_torch(plan, base_gguf.parent, adapters, steps, gguf_file=base_gguf.name, engine=engine)


def find_in_llama(
    plan: Plan, base_gguf: Path, adapters: Mapping[Subject, AdapterFiles], steps: Steps, *, work_dir: Path
) -> Findings:
    """Return what the GGUF files give in llama.cpp, in a process of its own.

    Raises:
        LlamaScorerUnavailableError: llama.cpp cannot be called on this machine.
        LlamaError: a file is not what it should be.
        StageFailedError: a score is not a number, or the process was killed.
    """
    subjects = _subjects(adapters)
    job = LlamaJob(
        base_gguf=base_gguf,
        subjects={subject: None if subject == "base" else adapters[subject].gguf for subject in subjects},
        texts=[
            LlamaText(prompt=text.prompt_ids, answer=text.answer_ids, generate=index < plan.questions)
            for index, text in enumerate(plan.texts)
        ],
        prefix_tokens=len(shared_prefix(plan.texts)),
        max_answer_tokens=plan.answer_tokens,
        threads=plan.threads,
    )
    result = score_with_llama(
        job, work_dir=work_dir, on_text=lambda: steps.add(1, "base and adapters, GGUF in llama.cpp")
    )
    scores: dict[Subject, list[TextScore]] = {}
    answers: dict[Subject, list[str]] = {}
    for subject in subjects:
        rows = result.subjects[subject]
        scores[subject] = [
            TextScore(math.fsum(_or_nan(row.logprobs)), len(text.answer_ids), text.answer_bytes)
            for row, text in zip(rows, plan.texts, strict=True)
        ]
        answers[subject] = [decode(row.generated, plan.tokenizer) for row in rows if row.generated is not None]
        _require_numbers(scores[subject], subject, "GGUF in llama.cpp")
    return Findings(result.engine, scores, answers)


def _subjects(adapters: Mapping[Subject, AdapterFiles]) -> list[Subject]:
    return [subject for subject in get_args(Subject) if subject == "base" or subject in adapters]


def _or_nan(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _require_numbers(scores: Sequence[TextScore], subject: Subject, engine: str) -> None:
    if not all(math.isfinite(score.logprob) for score in scores):
        raise StageFailedError(
            f"The {subject}'s score ({engine}) is not a number, so its weights are broken: the training diverged. "
            "Start a cycle with a lower learning rate in the recipe."
        )
