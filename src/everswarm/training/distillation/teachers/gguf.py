"""A teacher from any GGUF file, in llama.cpp: its tokenizer, its chat template, its logits.

Runs in the stage's own process, which is a child: a crash of the native library ends that and nothing more. What is
stored by then is not lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import sha256_of
from everswarm.schemas.targets import Teacher
from everswarm.settings import TeacherSettings
from everswarm.training.chat_tokens import Turns, after_answer, chat_text, no_chat_template
from everswarm.training.distillation.prompts import Template, plain_text, teacher_messages, template_name
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.teachers.at_work import TeacherToOpen, Text
from everswarm.training.distillation.teachers.given_text import (
    DEFAULT_TOP_K,
    GROUP,
    MAX_TEXT_TOKENS,
    TeacherVocabulary,
    TokenScores,
    cut_prompt,
    not_a_number,
)
from everswarm.training.llama_library import CHUNK_TOKENS, LlamaModel, PlacedToken

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everswarm.schemas.interaction import Message

CONTEXT_TOKENS = 4096  # prompt and answer; half a gigabyte of keys and values in an 8B model


def open_gguf_teacher(  # plain values, by name
    asked: TeacherSettings,
    *,
    path: Path,
    model: str,
    revision: str,
    quantization: str,
    threads: int,
    top_k: int = DEFAULT_TOP_K,
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> TeacherToOpen:
    """Return the teacher in the file `path`; nothing is loaded yet.

    Args:
        asked: its hindsight and template are used.
        path: of the GGUF, or of its first part.
        model: its name for the record.
        revision: such as `gguf_revision(path)`.
        quantization: such as `gguf_quantization(path)`.
        threads: of llama.cpp.
        top_k: candidates a token.
        max_text_tokens: tokens scored of one text.
    """

    def open_teacher() -> GgufTeacher:
        return GgufTeacher(
            path,
            model=model,
            hindsight=asked.hindsight,
            template=asked.template,
            threads=threads,
            top_k=top_k,
            max_text_tokens=max_text_tokens,
        )

    record = Teacher(
        asked=asked, model=model, revision=revision, quantization=quantization, template=template_name(asked)
    )
    return TeacherToOpen(record, open_teacher)


def gguf_revision(path: Path) -> str:
    """Return the sha256 of the file, or over those of all parts where it is the first of several.

    Raises:
        StageFailedError: there is no such file.
    """
    if not path.is_file():
        raise StageFailedError(f"There is no GGUF file at {path}. Give its path on the worker's machine: gguf:PATH.")
    first, _, parts = path.stem.rpartition("-of-")
    if not first.endswith("-00001") or not parts.isdigit():
        return sha256_of(path)
    files = sorted(path.parent.glob(f"{first.removesuffix('00001')}?????-of-{parts}.gguf"))
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


def gguf_quantization(path: Path) -> str:
    """Return what most weights of a GGUF are, such as Q4_K_M.

    Raises:
        StageFailedError: it is no GGUF.
    """
    from gguf import GGUFReader, LlamaFileType

    try:
        field = GGUFReader(path).fields.get("general.file_type")
    except (OSError, ValueError) as error:
        raise StageFailedError(f"{path} cannot be read as a GGUF: {error}. Fetch it again.") from error
    if field is None:
        return "unknown"
    return str(LlamaFileType(int(field.contents())).name).removeprefix("MOSTLY_").removeprefix("ALL_")


class GgufTeacher:
    """A GGUF model with what it needs to speak of tokens as bytes."""

    scores_given_text = True

    def __init__(  # plain values, by name
        self,
        path: Path,
        *,
        model: str,
        hindsight: bool = True,
        template: Template = "chat",
        threads: int = 1,
        top_k: int = DEFAULT_TOP_K,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        """Load the file.

        Raises:
            StageFailedError: it has no chat template and `template` is `chat`.
            LlamaScorerUnavailableError: llama.cpp is not installed or cannot be called.
            LlamaError: the file is not a model, or memory is short.
        """
        self.model, self.hindsight = model, hindsight
        self._llama = LlamaModel(path, context_tokens=CONTEXT_TOKENS, threads=threads)
        self._context_tokens = min(CONTEXT_TOKENS, self._llama.trained_context_tokens)
        self._chat_template = self._llama.chat_template if template == "chat" else None
        if template == "chat" and not self._chat_template:
            raise no_chat_template(f"The file {path.name}")
        self._vocabulary = TeacherVocabulary(
            self._llama.pieces(),
            end_of_turn=self._end_of_turn() if template == "chat" else None,
            head_rows=self._llama.vocabulary_size,
        )
        self.top_k = self._vocabulary.most_candidates(top_k)
        self._max_text_tokens = min(max_text_tokens, self._context_tokens // 2)

    def label(
        self,
        texts: Sequence[Text],
        *,
        batch: str | None = None,  # of remote teachers
        on_batch: Callable[[str], None] | None = None,
    ) -> Iterator[ScoredText]:
        """Yield the score of each text, in order.

        Raises:
            StageFailedError: a completion is empty, or the model gave something that is not a number.
        """
        for text in texts:
            yield self.score(text)

    def score(self, text: Text) -> ScoredText:
        """Score one completion, from its first token to the end of turn.

        Raises:
            StageFailedError: as `label`.
        """
        prompt = self.prompt_ids(teacher_messages(text.example, self.hindsight))
        ids = self._llama.tokenize(text.completion, special=False)
        answer = self._vocabulary.answer(text, ids, limit_tokens=self._max_text_tokens)
        prompt = cut_prompt(prompt, self._context_tokens - len(answer.ids))
        rows = [
            _cut(logits, token, k=self.top_k, nameless=self._vocabulary.nameless)
            for logits, token in zip(self._rows(prompt, answer.ids), answer.ids, strict=True)
        ]
        scores = TokenScores(*(np.stack(parts) for parts in zip(*rows, strict=True)))
        if not (np.isfinite(scores.logprob).all() and np.isfinite(scores.top_logprob[:, 0]).all()):
            raise not_a_number(self.model, f"example '{text.example.id}'")
        return self._vocabulary.scored(text, answer, scores)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of `messages`, up to where the answer begins.

        Raises:
            StageFailedError: the chat template cannot be used.
        """
        if self._chat_template is None:
            begin = [self._llama.begin_of_text] if self._llama.begins_text else []
            return begin + self._llama.tokenize(plain_text(messages), special=False)
        return self._llama.tokenize(chat_text(self._render, messages), special=True)

    def close(self) -> None:
        """Give the memory back."""
        self._llama.close()

    def _end_of_turn(self) -> int:
        """Return the token that the template writes behind an answer: llama.cpp's own guess is wrong for SmolLM2."""
        ids = self._llama.tokenize(after_answer(self._render), special=True)
        return ids[0] if ids and self._llama.ends_answer(ids[0]) else self._llama.end_of_turn

    def _render(self, turns: Turns, begin_answer: bool) -> str:
        """Write `turns` as transformers does, which is how the template's makers tried it."""
        from transformers.utils.chat_template_utils import render_jinja_template

        [text], _ = render_jinja_template(
            [turns],
            chat_template=self._chat_template,
            add_generation_prompt=begin_answer,
            bos_token=self._llama.spelling(self._llama.begin_of_text),
            eos_token=self._llama.spelling(self._llama.end_of_text),
        )
        return str(text)

    def _rows(self, prompt: list[int], answer: list[int]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits (vocabulary,) before each answer token; each is valid until the next is asked for."""
        self._llama.forget_from(0)
        tokens = [*prompt, *answer[:-1]]
        first = len(prompt) - 1
        for start in range(0, len(tokens), CHUNK_TOKENS):
            yield from self._llama.read(
                [
                    PlacedToken(token, position, 0, wanted=position >= first)
                    for position, token in enumerate(tokens[start : start + CHUNK_TOKENS], start=start)
                ]
            )


def _cut(
    logits: NDArray[np.float32], token: int, *, k: int, nameless: Sequence[int]
) -> tuple[np.float32, NDArray[np.int32], NDArray[np.float32], np.float32]:
    """Cut one row (vocabulary,) down to the log-probabilities of `token`, of the top k, and of all others together."""
    named = logits
    if nameless:
        named = logits.copy()
        named[nameless] = -np.inf
    top = _top(named, k)
    highest = logits.max()
    exponentials = np.exp(logits - highest)
    log_total = highest + np.log(exponentials.sum(dtype=np.float64))
    exponentials[top] = 0.0
    with np.errstate(divide="ignore"):  # of nothing left
        tail = highest + np.log(exponentials.sum(dtype=np.float64)) - log_total
    return (
        np.float32(logits[token] - log_total),
        top.astype(np.int32),
        (logits[top] - log_total).astype(np.float32),
        np.float32(tail),
    )


def _top(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return where the `k` highest values are, the highest first."""
    candidates = np.arange(len(logits))
    if len(logits) % GROUP == 0 and len(logits) // GROUP > k:
        groups = np.argpartition(logits.reshape(-1, GROUP).max(1), -k)[-k:]
        candidates = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
    if len(candidates) > k:
        candidates = candidates[np.argpartition(logits[candidates], -k)[-k:]]
    return np.asarray(candidates[np.argsort(-logits[candidates], kind="stable")])
