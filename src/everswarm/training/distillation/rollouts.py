"""The student's own answers to a share of the questions, for teachers to score. Knows no teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.schemas.dataset import Example
from everswarm.training.chat_tokens import prompt_ids
from everswarm.training.distillation.prompts import end_of_turn_id
from everswarm.training.models import load_student

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_MAX_TOKENS = 256
DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 0.95


class StudentWriter:
    """Lets the student answer. The same example and seed give the same text, in whatever order they are asked for."""

    def __init__(  # plain values
        self,
        weights_folder: Path,
        adapter_folder: Path | None,
        share: float,
        seed: int,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = DEFAULT_TEMPERATURE,
        top_p: float = DEFAULT_TOP_P,
        threads: int = 1,
    ) -> None:
        """Remember what to do; the weights are loaded with the first answer.

        Args:
            weights_folder: of the base.
            adapter_folder: with PEFT's two files, or None for the base alone.
            share: of the examples that are answered.
            seed: decides which ones, and what is drawn.
            max_tokens: of an answer; one that has not ended by then counts as it is.
            temperature: of the draw.
            top_p: of the draw.
            threads: of torch.
        """
        self.weights_folder, self.adapter_folder = weights_folder, adapter_folder
        self.share, self.seed, self.max_tokens, self.threads = share, seed, max_tokens, threads
        self.temperature, self.top_p = temperature, top_p
        self._loaded: tuple[Any, PreTrainedTokenizerBase] | None = None

    def __call__(self, example: Example) -> str | None:
        """Return the student's answer, or None: the example was not chosen, or the answer is empty.

        Raises:
            StageFailedError: the student has no usable chat template.
        """
        if not self.chooses(example):
            return None
        _, tokenizer = self._student()
        prompt = prompt_ids(tokenizer, example.messages)
        written = self._draw(prompt, self._number("draw", example) % 2**63)
        # what ends in the middle of a character is no text yet
        answer = tokenizer.decode(written, skip_special_tokens=True).strip().rstrip("\ufffd \t\r\n")
        return str(answer) or None

    def chooses(self, example: Example) -> bool:
        """Return whether the example is one of the share."""
        return self._number("choose", example) < self.share * 2**64

    def _draw(self, prompt: Sequence[int], seed: int) -> list[int]:
        import torch
        from transformers import GenerationConfig

        model, tokenizer = self._student()
        ends = {end_of_turn_id(tokenizer), tokenizer.eos_token_id} - {None}
        config = GenerationConfig(
            max_new_tokens=self.max_tokens,
            do_sample=True,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0,  # the default is 50
            eos_token_id=sorted(ends),
            pad_token_id=min(ends),
        )
        room = int(model.config.max_position_embeddings) - self.max_tokens
        ids = torch.tensor([list(prompt)[-room:]])
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(seed)
            whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return [int(number) for number in whole[0, ids.shape[1] :]]

    def _student(self) -> tuple[Any, PreTrainedTokenizerBase]:
        if self._loaded is None:
            model, tokenizer = load_student(self.weights_folder, threads=self.threads)
            if self.adapter_folder is not None:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, str(self.adapter_folder)).merge_and_unload()
            self._loaded = (model.eval(), tokenizer)
        return self._loaded

    def _number(self, purpose: str, example: Example) -> int:
        """Return 64 bits that depend on nothing but the purpose, the seed and the example."""
        digest = hashlib.sha256(f"{purpose} {self.seed} {example.id}".encode()).digest()
        return int.from_bytes(digest[:8], "big")
