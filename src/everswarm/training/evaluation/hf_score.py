"""Score and answer with Hugging Face weights and PEFT adapters, float32 on the CPU.

One base model in memory for all subjects: adapters are switched on and off over it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from everswarm.training.evaluation.texts import TextScore, TokenizedText, shared_prefix

BATCH_TOKENS = 384  # padded tokens read at once: bounds memory, and more is not faster on a CPU
GENERATE_BATCH = 16  # questions answered at once


class HfModel:
    """Base weights with named adapters over them. Knows nothing of suites."""

    def __init__(
        self, folder: Path, *, adapters: Mapping[str, Path], threads: int, gguf_file: str | None = None
    ) -> None:
        """Load the weights in `folder` (or its `gguf_file`, dequantised) and the PEFT files of each adapter folder."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        source = {"gguf_file": gguf_file} if gguf_file else {}
        self._model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, **source)
        self._has_adapters = bool(adapters)
        for index, (name, path) in enumerate(adapters.items()):
            if index == 0:
                self._model = PeftModel.from_pretrained(self._model, str(path), adapter_name=name)
            else:
                self._model.load_adapter(str(path), adapter_name=name)
        self._model.eval()

    def use(self, adapter: str | None) -> AbstractContextManager[Any]:
        """Within the context, answer with `adapter`, or with the base alone."""
        if adapter is not None:
            self._model.set_adapter(adapter)
            return nullcontext()
        manager: AbstractContextManager[Any] = self._model.disable_adapter() if self._has_adapters else nullcontext()
        return manager

    def score(
        self, texts: Sequence[TokenizedText], *, on_texts: Callable[[int], None] = lambda _count: None
    ) -> list[TextScore]:
        """Return the score of each text, in order; `on_texts` hears how many were just done.

        The tokens that all prompts share are read once; only answer positions reach the vocabulary.
        """
        prefix = shared_prefix(texts)
        cache = self._read_prefix(prefix)
        scores: dict[int, TextScore] = {}
        for batch in batches(texts, prefix_tokens=len(prefix)):
            logprobs = self._score_batch([texts[index] for index in batch], prefix=prefix, cache=cache)
            for index, value in zip(batch, logprobs, strict=True):
                scores[index] = TextScore(value, len(texts[index].answer_ids), texts[index].answer_bytes)
            on_texts(len(batch))
        return [scores[index] for index in range(len(texts))]

    def _read_prefix(self, prefix: list[int]) -> Any:
        import torch

        if not prefix:
            return None
        with torch.inference_mode():
            return self._model(input_ids=torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values

    def _score_batch(self, texts: Sequence[TokenizedText], *, prefix: list[int], cache: Any) -> list[float]:
        import torch

        shared = len(prefix)
        rows = [(text.prompt_ids + text.answer_ids)[shared:-1] for text in texts]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * (shared + len(row)) + [0] * (width - len(row)) for row in rows])
        firsts = [len(text.prompt_ids) - 1 - shared for text in texts]
        kept = sorted(
            {first + step for first, row in zip(firsts, rows, strict=True) for step in range(len(row) - first)}
        )
        place = {position: index for index, position in enumerate(kept)}
        past = None
        if cache is not None:
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(texts))
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids, attention_mask=mask, past_key_values=past, logits_to_keep=torch.tensor(kept)
            ).logits
            return [
                _sum_logprob(logits[index, place[first] : place[first] + len(text.answer_ids)], text.answer_ids)
                for index, (text, first) in enumerate(zip(texts, firsts, strict=True))
            ]

    def answer(self, prompts: Sequence[list[int]], *, limit_tokens: int, pad_id: int) -> list[list[int]]:
        """Return greedy answers, in order, batched; each ends before its end-of-turn token or at `limit_tokens`."""
        answers: list[list[int]] = []
        for start in range(0, len(prompts), GENERATE_BATCH):
            answers += self._answer_batch(prompts[start : start + GENERATE_BATCH], limit_tokens, pad_id)
        return answers

    def _answer_batch(self, prompts: Sequence[list[int]], limit_tokens: int, pad_id: int) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig

        width = max(len(prompt) for prompt in prompts)
        ends = self._model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or [])
        config = GenerationConfig(
            max_new_tokens=limit_tokens, do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad_id
        )
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]),
                attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
                generation_config=config,
            )
        return [until_end(row[width:].tolist(), ends) for row in output]


def batches(texts: Sequence[TokenizedText], *, prefix_tokens: int) -> list[list[int]]:
    """Group the indices of `texts` by falling length, so that `BATCH_TOKENS` padded tokens go together."""
    lengths = [len(text.prompt_ids) + len(text.answer_ids) - prefix_tokens for text in texts]
    groups: list[list[int]] = []
    for index in sorted(range(len(texts)), key=lambda index: -lengths[index]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= BATCH_TOKENS:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Return `ids` up to the first of `ends`."""
    stops = [index for index, token in enumerate(ids) if token in ends]
    return ids[: stops[0]] if stops else ids


def _sum_logprob(logits: Any, answer_ids: list[int]) -> float:
    """Return the sum of log p (nats) of `answer_ids` under `logits` (tokens, vocab)."""
    import torch

    picked = logits.gather(1, torch.tensor(answer_ids).unsqueeze(1)).squeeze(1)
    return float((picked - logits.logsumexp(dim=1)).double().sum())
