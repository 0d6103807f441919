"""Any file, named by its digest."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from everswarm.schemas.base import Record, Sha256


class ArtifactKind(StrEnum):
    """What a file is."""

    SNAPSHOT = "snapshot"  # JSON lines of judged interactions, frozen at the start of a cycle
    DATASET = "dataset"  # parquet of examples, preferences or desirabilities
    MEMBERS = "members"  # gzip of lines: who is in a dataset
    SUSPICIONS = "suspicions"  # JSON lines of what curation set aside
    SOFT_TARGETS = "soft-targets"  # parquet shard of teacher log-probabilities
    CHECKPOINT = "checkpoint"  # tar of an unfinished training run
    ADAPTER = "adapter"  # safetensors of LoRA weights (PEFT)
    ADAPTER_CONFIG = "adapter-config"  # adapter_config.json (PEFT)
    ADAPTER_GGUF = "adapter-gguf"  # the same weights for llama.cpp
    BASE_GGUF = "base-gguf"  # the base model for llama.cpp
    RECORD = "record"  # a record of `schemas` as JSON


class Artifact(Record):
    """A file in the content-addressed store."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)
    kind: ArtifactKind
    name: str = Field(min_length=1, max_length=200)
