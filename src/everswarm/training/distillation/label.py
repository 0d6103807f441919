"""The teacher's pass: score every target text once and cache it in shards, so that a restart loses one shard at most.

Each example is a batch of its own, so its numbers do not depend on its neighbours, nor on where a run was cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets, Teacher
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation.prompts import HINDSIGHT_TEMPLATE, end_of_turn_id, teacher_messages
from everswarm.training.distillation.target_shards import END_OF_TURN, ScoredText, write_shard
from everswarm.training.distillation.token_bytes import byte_spans, token_bytes
from everswarm.training.models import load_student

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_TOP_K = 20
DEFAULT_SHARD_EXAMPLES = 32
DEFAULT_TARGET_TOKENS = 1024  # of one example; the rest of a longer text is learnt from the text alone

ReportProgress = Callable[[int, int, str], None]  # done, total, note


def hindsight_teacher(model: str, weights_sha256: str) -> Teacher:
    """Return the teacher that is `model` itself, shown the person's correction before it scores."""
    return Teacher(model=model, weights_sha256=weights_sha256, hindsight=True, template=HINDSIGHT_TEMPLATE)


def label(  # noqa: PLR0913  # the door of a stage: everything that it needs, by name
    examples: Sequence[Example],
    *,
    dataset: str,
    weights: Path,
    teacher: Teacher,
    out_dir: Path,
    done: LabelCheckpoint,
    store_shard: Callable[[Path], Artifact],
    on_checkpoint: Callable[[LabelCheckpoint], None],
    on_progress: ReportProgress | None = None,
    threads: int = 1,
    top_k: int = DEFAULT_TOP_K,
    shard_examples: int = DEFAULT_SHARD_EXAMPLES,
    max_target_tokens: int = DEFAULT_TARGET_TOKENS,
) -> SoftTargets:
    """Score the targets of `examples` (those of the test split are left out) and return the record of the cache.

    Args:
        examples: in the dataset's order, which is the order of the cache.
        dataset: sha256 of the dataset.
        weights: folder with the teacher's weights and tokenizer.
        teacher: goes into the record; its `hindsight` and `template` decide the prompt.
        out_dir: for shards that are not stored yet.
        done: what an earlier, interrupted run has stored; those shards are not scored again.
        store_shard: keeps one finished shard.
        on_checkpoint: called after each stored shard with what is finished now.
        on_progress: called after each example.
        threads: of torch.
        top_k: candidates kept a token.
        shard_examples: examples a shard.
        max_target_tokens: tokens scored of one target.

    Raises:
        StageFailedError: there is nothing to score, or the teacher gave something that is not a number.
        NoSpaceError: the disk is full.
    """
    scored = [example for example in examples if example.split != "test"]
    if not scored:
        raise StageFailedError("There are no training examples to label; the dataset has none in train or validation.")
    report = on_progress or (lambda _done, _total, _note: None)
    shards = [scored[start : start + shard_examples] for start in range(0, len(scored), shard_examples)]
    out_dir.mkdir(parents=True, exist_ok=True)
    scorer = None
    for number in range(len(done.shards), len(shards)):
        scorer = scorer or _Scorer(weights, teacher, top_k=top_k, max_tokens=max_target_tokens, threads=threads)
        texts = []
        for index, example in enumerate(shards[number]):
            texts.append(scorer.score(example))
            report(number * shard_examples + index + 1, len(scored), "the teacher scores")
        path = out_dir / f"soft-targets-{number:04d}.parquet"
        write_shard(texts, path)
        done = _with_shard(done, store_shard(path), texts)
        on_checkpoint(done)
    return SoftTargets(
        teacher=teacher,
        dataset=dataset,
        shards=done.shards,
        digest=hashlib.sha256("".join(shard.sha256 for shard in done.shards).encode()).hexdigest(),
        top_k=top_k,
        tokens=done.tokens,
        text_bytes=done.text_bytes,
        top_k_mass=done.mass_sum / max(done.tokens, 1),
    )


def _with_shard(done: LabelCheckpoint, shard: Artifact, texts: Sequence[ScoredText]) -> LabelCheckpoint:
    return LabelCheckpoint(
        shards=[*done.shards, shard],
        tokens=done.tokens + sum(len(text.start) for text in texts),
        text_bytes=done.text_bytes + sum(len(text.text) for text in texts),
        mass_sum=done.mass_sum + sum(text.top_k_mass for text in texts),
    )


class _Scorer:
    """The teacher's model with what it needs to speak of tokens as bytes."""

    def __init__(self, weights: Path, teacher: Teacher, *, top_k: int, max_tokens: int, threads: int) -> None:
        model, tokenizer = load_student(weights, threads=threads)
        self.model: PreTrainedModel = model.eval()
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.teacher = teacher
        self.max_tokens = max_tokens
        self.pieces = token_bytes(tokenizer)
        self.end_of_turn = end_of_turn_id(tokenizer)
        # ids without a token and rows that only pad the matrix can be no candidate; their mass is in the tail
        rows = int(model.get_output_embeddings().weight.shape[0])
        self.nameless = [number for number, piece in enumerate(self.pieces) if not piece]
        self.nameless += range(len(self.pieces), rows)
        self.top_k = min(top_k, rows - len(self.nameless))

    def score(self, example: Example) -> ScoredText:
        """Score the example's target, from its first token to the end of turn."""
        import torch

        prompt = prompt_ids(self.tokenizer, teacher_messages(example, self.teacher))
        answer = answer_ids(self.tokenizer, example.target)
        text = example.target.encode()
        spans = byte_spans(answer, self.pieces, text)
        if len(answer) >= self.max_tokens:
            answer, spans = answer[: self.max_tokens], spans[: self.max_tokens]
            text = text[: spans[-1][1]]
        else:
            answer, spans = [*answer, self.end_of_turn], [*spans, (len(text), len(text))]
        room = int(self.model.config.max_position_embeddings) - len(answer)
        prompt = prompt[-room:]  # of a conversation that is too long the end counts
        with torch.inference_mode():
            ids = torch.tensor([prompt + answer])
            logits = self.model(ids, logits_to_keep=len(answer) + 1, use_cache=False).logits[0, :-1].float()
            if not torch.isfinite(logits).all():
                raise StageFailedError(
                    f"The teacher {self.teacher.model} gave values that are not numbers for example '{example.id}'. "
                    "Use float32 weights (half precision may overflow), or remove the model's folder to have its "
                    "weights made again."
                )
            return self._text_of(example.id, text, spans, torch.tensor(answer), logits)

    def _text_of(
        self, identifier: str, text: bytes, spans: list[tuple[int, int]], answer: Tensor, logits: Tensor
    ) -> ScoredText:
        """Cut `logits` (tokens, vocab) down to the main path, the top k and the tail."""
        import torch

        log_total = logits.logsumexp(-1, keepdim=True)
        own = (logits.gather(1, answer[:, None]) - log_total)[:, 0]
        named = logits.index_fill(1, torch.tensor(self.nameless), -torch.inf) if self.nameless else logits
        values, ids = named.topk(self.top_k, dim=-1)
        tail = logits.scatter(1, ids, -torch.inf).logsumexp(-1) - log_total[:, 0]
        return ScoredText(
            id=identifier,
            text=text,
            start=[start for start, _ in spans],
            end=[end for _, end in spans],
            logprob=own.numpy(),
            top_bytes=[
                [END_OF_TURN if number == self.end_of_turn else self.pieces[number] for number in row]
                for row in ids.tolist()
            ],
            top_logprob=(values - log_total).numpy(),
            tail_logprob=tail.numpy(),
        )
