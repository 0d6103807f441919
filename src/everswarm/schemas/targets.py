"""The teacher's token log-probabilities over a text, cached."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256


class Teacher(Record):
    """Who scored. `hindsight` means that the teacher was shown the user's correction before it scored."""

    model: str
    weights_sha256: Sha256
    hindsight: bool
    template: str  # name of the hindsight prompt, so that a new wording makes a new cache


class SoftTargets(Record):
    """Cached soft targets of the training examples of one dataset.

    Each shard is parquet, one row an example: `id`, `text` (the bytes scored), and per teacher token lists
    `start`, `end` (byte span in `text`; an empty span at the end is the end-of-turn token), `logprob` (of the
    text's own token), `top_bytes` and `top_logprob` (k a token, by falling probability) and `tail_logprob`
    (of everything that is not among the k). Tokens are bytes, never ids: tokenizers differ.
    """

    schema_version: Literal[1] = 1
    teacher: Teacher
    dataset: Sha256
    shards: list[Artifact]
    digest: Sha256  # sha256 over the shard digests in order: the identity of the cache
    top_k: int
    tokens: int
    text_bytes: int
    top_k_mass: float  # mean probability inside the k


class LabelCheckpoint(Record):
    """The shards that are finished, in order; a restarted worker begins after them."""

    shards: list[Artifact] = Field(default_factory=list)
    tokens: int = 0
    text_bytes: int = 0
    mass_sum: float = 0.0
