"""A teacher from a folder of Hugging Face weights, in float32, float16 or 4 bits.

The body reads a text once; the head follows in blocks of positions, so that the logits of a whole text are never held.
Each text is a batch of its own, so its numbers do not depend on its neighbours, nor on where a run was cut.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import sha256_of
from everswarm.schemas.targets import Teacher
from everswarm.settings import Precision, TeacherSettings
from everswarm.training.chat_tokens import answer_ids
from everswarm.training.distillation.prompts import (
    Template,
    end_of_turn_id,
    prompt_ids,
    teacher_messages,
    template_name,
)
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
from everswarm.training.distillation.token_bytes import token_bytes
from everswarm.training.models import load_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

WEIGHTS_PATTERN = "model*.safetensors"  # what transformers reads; others in a folder are copies in another form
BLOCK_LOGITS = 2**24  # 64 MiB of float32
SAME_LOGITS: dict[Precision, float] = {"float32": 1e-4, "float16": 5e-3, "nf4": 5e-3}  # of the largest one


def open_weights_teacher(  # plain values, by name
    asked: TeacherSettings,
    *,
    folder: Path,
    model: str,
    revision: str,
    threads: int,
    top_k: int = DEFAULT_TOP_K,
    max_text_tokens: int = MAX_TEXT_TOKENS,
) -> TeacherToOpen:
    """Return the teacher whose weights and tokenizer lie in `folder`; nothing is loaded yet.

    Args:
        asked: its precision, hindsight and template are used.
        folder: of Hugging Face weights.
        model: its name for the record.
        revision: of the weights, such as `weights_revision(folder)`.
        threads: of torch.
        top_k: candidates a token.
        max_text_tokens: tokens scored of one text.
    """

    def open_teacher() -> WeightsTeacher:
        return WeightsTeacher(
            folder,
            model=model,
            precision=asked.precision,
            hindsight=asked.hindsight,
            template=asked.template,
            threads=threads,
            top_k=top_k,
            max_text_tokens=max_text_tokens,
        )

    record = Teacher(
        asked=asked, model=model, revision=revision, quantization=asked.precision, template=template_name(asked)
    )
    return TeacherToOpen(record, open_teacher)


def weights_revision(folder: Path) -> str:
    """Return the sha256 of the weights in `folder`: that of the one file model*.safetensors, or over those of several.

    Raises:
        StageFailedError: there are none.
    """
    digests = [sha256_of(path) for path in sorted(folder.glob(WEIGHTS_PATTERN))]
    if not digests:
        raise StageFailedError(
            f"{folder} has no {WEIGHTS_PATTERN}. Name a folder of Hugging Face weights, with config.json and "
            "tokenizer.json in it; for a GGUF file write gguf:PATH."
        )
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


class WeightsTeacher:
    """A model with what it needs to speak of tokens as bytes."""

    scores_given_text = True

    def __init__(  # plain values, by name
        self,
        folder: Path,
        *,
        model: str,
        precision: Precision = "float32",
        hindsight: bool = True,
        template: Template = "chat",
        threads: int = 1,
        top_k: int = DEFAULT_TOP_K,
        max_text_tokens: int = MAX_TEXT_TOKENS,
    ) -> None:
        """Load the weights and see that our way to the logits is the model's own.

        Raises:
            StageFailedError: precision or architecture do not work here, the tokenizer has no usable chat template or
                is not the model's, or the model computes no numbers.
        """
        loaded, tokenizer = load_weights(folder, precision=precision, threads=threads)
        self.model, self.hindsight, self.template = model, hindsight, template
        self._tokenizer = tokenizer
        self._logits = _Logits(loaded.eval(), model, tolerance=SAME_LOGITS[precision])
        self._vocabulary = TeacherVocabulary(
            token_bytes(tokenizer),
            end_of_turn=end_of_turn_id(tokenizer) if template == "chat" else None,
            head_rows=self._logits.rows,
        )
        self.top_k = self._vocabulary.most_candidates(top_k)
        self._max_text_tokens = min(max_text_tokens, self._logits.context_tokens // 2)

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
        messages = teacher_messages(text.example, self.hindsight)
        prompt = prompt_ids(self._tokenizer, messages, self.template)
        ids = answer_ids(self._tokenizer, text.completion)
        answer = self._vocabulary.answer(text, ids, limit_tokens=self._max_text_tokens)
        prompt = cut_prompt(prompt, self._logits.context_tokens - len(answer.ids))
        blocks = [
            _cut(logits, following, k=self.top_k, nameless=self._vocabulary.nameless)
            for logits, following in self._logits.of_answer(prompt, answer.ids)
        ]
        scores = TokenScores(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))
        if not (np.isfinite(scores.logprob).all() and np.isfinite(scores.top_logprob[:, 0]).all()):
            raise not_a_number(self.model, f"example '{text.example.id}'")
        return self._vocabulary.scored(text, answer, scores)

    def close(self) -> None:
        """Drop the model, so that the next teacher has its memory."""
        import torch

        del self._logits
        gc.collect()  # modules hold each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Logits:
    """Logits of a causal model, some positions at a time."""

    def __init__(self, model: PreTrainedModel, name: str, *, tolerance: float) -> None:
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        config = model.config.get_text_config()
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        self._device = model.device
        self.rows = int(self._head.weight.shape[0])
        self.context_tokens = int(getattr(config, "max_position_embeddings", None) or 4096)
        self._compare(model, name, tolerance)

    def of_answer(self, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of logits (tokens, vocab) in float32 and the tokens (tokens,) that do follow there."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *answer]], device=self._device)
            hidden = self._body(ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1]
        following = ids[0, len(prompt) :]
        step = max(BLOCK_LOGITS // self.rows, 1)
        for start in range(0, len(hidden), step):
            yield self._of(hidden[start : start + step]), following[start : start + step]

    def _of(self, hidden: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            logits: Tensor = self._head(hidden).float()
            if self._scale != 1.0:
                logits = logits * self._scale
            return torch.tanh(logits / self._softcap) * self._softcap if self._softcap else logits

    def _compare(self, model: PreTrainedModel, name: str, tolerance: float) -> None:
        import torch

        ids = torch.arange(4, device=self._device)[None]
        with torch.inference_mode():
            expected = model(ids, use_cache=False).logits[0].float()
            found = self._of(self._body(ids, use_cache=False).last_hidden_state[0])
        if not torch.isfinite(expected).all():
            raise not_a_number(name, "four tokens, as a test")
        if found.shape != expected.shape or (found - expected).abs().max() > tolerance * expected.abs().max():
            raise StageFailedError(
                f"The architecture of {name} ({model.config.model_type}) does something to its logits that is not "
                "known here, so its log-probabilities would be wrong. Use a GGUF of this model: gguf:PATH."
            )


def _cut(logits: Tensor, following: Tensor, *, k: int, nameless: Sequence[int]) -> TokenScores:
    """Cut `logits` (tokens, vocab), which are lost, down to the tokens that do follow, the top k and the tail.

    The tail is the sum of all others, not 1 minus the top k, which rounding would make worthless.
    """
    import torch

    with torch.inference_mode():
        own = logits.gather(1, following[:, None])
        columns = torch.tensor(nameless, device=logits.device, dtype=torch.long)
        spare = logits[:, columns]
        values, ids = _top(logits.index_fill_(1, columns, -torch.inf), k)
        logits[:, columns] = spare
        highest = logits.amax(-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        log_total = highest + exponentials.sum(-1, keepdim=True).log()
        others = exponentials.scatter_(1, ids, 0.0).sum(-1, keepdim=True)
        found = ((own - log_total)[:, 0], ids.int(), values - log_total, (highest + others.log() - log_total)[:, 0])
        return TokenScores(*(part.cpu().numpy() for part in found))


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` highest values (tokens, k) and where they are, as `topk` does in three times the time."""
    tokens, width = logits.shape
    if width % GROUP or width // GROUP < k:
        values, ids = logits.topk(k, dim=-1)
        return values, ids
    groups = logits.view(tokens, width // GROUP, GROUP)
    chosen = groups.amax(-1).topk(k, dim=-1).indices
    values, places = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).reshape(tokens, -1).topk(k, dim=-1)
    return values, chosen.gather(1, places // GROUP) * GROUP + places % GROUP
