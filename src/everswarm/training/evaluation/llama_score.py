"""Score and answer with a base GGUF and adapter GGUFs, in a process of its own: a native crash ends only that.

Started as `python -m everswarm.training.evaluation.llama_score JOB RESULT` (two paths of JSON files).
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from everswarm.errors import StageFailedError
from everswarm.processes import leave_with_parent, start_python_child, stop_child
from everswarm.schemas.base import Record
from everswarm.training.llama_library import (
    CHUNK_TOKENS,
    LlamaError,
    LlamaModel,
    LlamaScorerUnavailableError,
    PlacedToken,
    engine_name,
)

SEQUENCES = 4  # texts held side by side: answers of four cost half of four alone
_CRASH_SIGNALS = {4, 6, 7, 8, 10, 11}  # ILL, ABRT, BUS, FPE, BUS on macOS, SEGV: the library, not the operator


class LlamaText(Record):
    """One text as ids; `generate` asks for a greedy answer too."""

    prompt: list[int]
    answer: list[int]
    generate: bool = False


class LlamaJob(Record):
    """What the child does: every text with every subject. A subject without a file is the base alone."""

    base_gguf: Path
    subjects: dict[str, Path | None]
    texts: list[LlamaText]
    prefix_tokens: int  # that all prompts share; read once a subject
    max_answer_tokens: int
    threads: int


class LlamaTextResult(Record):
    """Log-probabilities (nats) of the answer's tokens, and the ids of the greedy answer where one was asked for."""

    logprobs: list[float | None]  # None: not a number
    generated: list[int] | None


class LlamaResult(Record):
    """What the child found, by subject, in the order of the texts; or why it could not."""

    engine: str = ""
    subjects: dict[str, list[LlamaTextResult]] = Field(default_factory=dict)
    unavailable: str | None = None
    refused: str | None = None


def score_with_llama(job: LlamaJob, *, work_dir: Path, on_text: Callable[[], None] | None = None) -> LlamaResult:
    """Run `job` in a child process; `on_text` is called after each text of each subject.

    Raises:
        LlamaScorerUnavailableError: the library cannot be called here, or it crashed.
        LlamaError: a file is not what it should be.
        StageFailedError: the child was killed or failed otherwise, for example for want of memory.
    """
    with tempfile.TemporaryDirectory(prefix="llama-", dir=work_dir) as folder:
        job_path, result_path, log_path = (Path(folder) / name for name in ("job.json", "result.json", "log.txt"))
        job_path.write_text(job.model_dump_json(), encoding="utf-8")
        with log_path.open("w", encoding="utf-8") as log:
            child = start_python_child(
                ["-m", __name__, str(job_path), str(result_path)], stdout=subprocess.PIPE, stderr=log
            )
            try:
                for _line in child.stdout or ():
                    if on_text is not None:
                        on_text()
                code = child.wait()
            finally:
                stop_child(child)
        if code != 0:
            _raise_for_exit(code, log_path.read_text(encoding="utf-8", errors="replace"))
        result = LlamaResult.model_validate_json(result_path.read_text(encoding="utf-8"))
    if result.unavailable is not None:
        raise LlamaScorerUnavailableError(result.unavailable)
    if result.refused is not None:
        raise LlamaError(result.refused)
    return result


def _raise_for_exit(code: int, log: str) -> None:
    if -code in _CRASH_SIGNALS or code >= 0xC0000000:  # the second: an NTSTATUS of Windows
        raise LlamaScorerUnavailableError(f"llama.cpp crashed while scoring (exit code {code}).")
    last_lines = " / ".join(log.strip().splitlines()[-3:]) or "nothing"
    raise StageFailedError(
        f"Scoring in llama.cpp ended with exit code {code}. Its last words: {last_lines}. "
        "If it was killed, memory was short: free some and retry the cycle."
    )


def run_job(job: LlamaJob, *, on_text: Callable[[], None]) -> LlamaResult:
    """Do `job` in this process.

    Raises:
        LlamaScorerUnavailableError: the library cannot be called here.
        LlamaError: a file is not what it should be.
    """
    longest = max(len(text.prompt) + max(len(text.answer), job.max_answer_tokens) for text in job.texts)
    context_tokens = -(-(longest + 1) // 256) * 256
    model = LlamaModel(job.base_gguf, context_tokens=context_tokens, threads=job.threads, sequences=SEQUENCES)
    adapters = {name: model.load_adapter(path) if path else None for name, path in job.subjects.items()}
    results: dict[str, list[LlamaTextResult]] = {}
    for name, adapter in adapters.items():
        model.use_adapter(adapter)
        for sequence in range(SEQUENCES):
            _read(model, job.texts[0].prompt[: job.prefix_tokens], start=0, sequence=sequence, wanted_from=None)
        results[name] = []
        for start in range(0, len(job.texts), SEQUENCES):
            results[name] += _one_group(model, job.texts[start : start + SEQUENCES], job, on_text)
    model.close()
    return LlamaResult(engine=engine_name(), subjects=results)


def _one_group(
    model: LlamaModel, texts: list[LlamaText], job: LlamaJob, on_text: Callable[[], None]
) -> list[LlamaTextResult]:
    logprobs = []
    for sequence, text in enumerate(texts):
        logprobs.append(answer_logprobs(model, text, prefix_tokens=job.prefix_tokens, sequence=sequence))
        on_text()
    prompts = {sequence: text.prompt for sequence, text in enumerate(texts) if text.generate}
    generated = greedy_answers(model, prompts, limit_tokens=job.max_answer_tokens)
    return [
        LlamaTextResult(
            logprobs=[value if math.isfinite(value) else None for value in values], generated=generated.get(sequence)
        )
        for sequence, values in enumerate(logprobs)
    ]


def answer_logprobs(model: LlamaModel, text: LlamaText, *, prefix_tokens: int, sequence: int = 0) -> list[float]:
    """Return the log-probability (nats) of each answer token; the first `prefix_tokens` must have been read before."""
    model.forget_from(prefix_tokens, sequence=sequence)
    logprobs: list[float] = []
    _read(
        model,
        (text.prompt + text.answer)[prefix_tokens:-1],
        start=prefix_tokens,
        sequence=sequence,
        wanted_from=len(text.prompt) - 1,  # this position predicts the first answer token
        at=lambda row: logprobs.append(log_softmax_at(row, text.answer[len(logprobs)])),
    )
    return logprobs


def greedy_answers(model: LlamaModel, prompts: dict[int, list[int]], *, limit_tokens: int) -> dict[int, list[int]]:
    """Return greedy answers, each until its turn ends; `prompts` are keyed by the sequence that has just read them."""
    answers: dict[int, list[int]] = {sequence: [] for sequence in prompts}
    latest = {sequence: prompt[-1] for sequence, prompt in prompts.items()}
    for sequence, prompt in prompts.items():
        model.forget_from(len(prompt) - 1, sequence=sequence)
    while latest:
        placed = [
            PlacedToken(token, len(prompts[sequence]) - 1 + len(answers[sequence]), sequence, wanted=True)
            for sequence, token in latest.items()
        ]
        chosen = [int(row.argmax()) for row in model.read(placed)]
        latest = dict(zip(latest, chosen, strict=True))
        latest = {sequence: token for sequence, token in latest.items() if not model.ends_answer(token)}
        for sequence, token in latest.items():
            answers[sequence].append(token)
        latest = {sequence: token for sequence, token in latest.items() if len(answers[sequence]) < limit_tokens}
    return answers


def _read(
    model: LlamaModel,
    tokens: list[int],
    *,
    start: int,
    sequence: int,
    wanted_from: int | None,
    at: Callable[[NDArray[np.float32]], None] = lambda _row: None,
) -> None:
    """Read any number of tokens from position `start` on, in chunks; `at` gets the logits from `wanted_from` on."""
    for offset in range(0, len(tokens), CHUNK_TOKENS):
        placed = [
            PlacedToken(token, position, sequence, wanted=wanted_from is not None and position >= wanted_from)
            for position, token in enumerate(tokens[offset : offset + CHUNK_TOKENS], start=start + offset)
        ]
        for row in model.read(placed):
            at(row)


def log_softmax_at(logits: NDArray[np.float32], token: int) -> float:
    """Return log p(token) in nats of one row of logits (vocabulary,); the sum is taken in float64."""
    highest = logits.max()
    total = np.exp(logits - highest).sum(dtype=np.float64)
    return float(logits[token]) - float(highest) - float(np.log(total))


def main(job_path: Path, result_path: Path) -> None:
    """Read the job, do it, write the result; one line on standard output a text."""
    leave_with_parent()
    job = LlamaJob.model_validate_json(job_path.read_text(encoding="utf-8"))
    try:
        result = run_job(job, on_text=lambda: print("text", flush=True))
    except LlamaScorerUnavailableError as error:
        result = LlamaResult(unavailable=str(error))
    except LlamaError as error:
        result = LlamaResult(refused=str(error))
    result_path.write_text(result.model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
