"""LoRA weights bound to one base model by digest."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256


class Recipe(Record):
    """The numbers of one training run; read from a YAML file in `training/recipes`."""

    name: str
    rank: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"]
    learning_rate: float = Field(gt=0)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    batch_size: int = Field(ge=1)  # examples a step
    epochs: int = Field(ge=1)
    max_tokens: int = Field(ge=16)  # prompt and answer together; longer examples are cut at the end
    soft_target_weight: float = Field(ge=0, le=1)  # the rest weighs the cross-entropy
    only_better: bool = True  # a teacher is heard on a text that it finds at least as likely as the student does
    chunk_weight: float = Field(default=1.0, ge=0)  # of a chunk's likelihood, where the tokenizers cut differently
    chunk_temperature: float = Field(default=100.0, ge=1)  # of that likelihood; arXiv 2503.20083
    first_token_weight: float = Field(default=0.1, ge=0)  # of the first token's distribution in such a chunk
    rollout_share: float = Field(default=0.0, ge=0, le=1)  # of the questions, which the student answers for the teacher
    rollout_skew: float = Field(default=0.1, ge=0, lt=1)  # of the student in the mixture that it is compared with
    checkpoint_every_steps: int = Field(ge=1)


class TrainingCurvePoint(Record):
    """One logged step."""

    step: int
    loss: float
    cross_entropy: float  # a token
    kl: float  # a token that a teacher speaks of
    chunk: float = 0.0  # a chunk that teacher and student cut differently


class Adapter(Record):
    """A trained student, as PEFT files."""

    student: str
    base_weights_sha256: Sha256
    weights: Artifact
    config: Artifact
    recipe: Recipe
    seed: int
    dataset: Sha256
    soft_targets: Sha256
    steps: int
    trained_tokens: int  # answer tokens seen, over all epochs
    trainable_parameters: int
    curve: list[TrainingCurvePoint]


class ExportedAdapter(Record):
    """The adapter and its base in the format that ships (GGUF)."""

    adapter: Adapter
    adapter_gguf: Artifact
    base_gguf: Artifact
    quantization: str  # of the base, such as Q4_K_M
    note: str | None = None  # why the quantisation is not the one that was asked for
