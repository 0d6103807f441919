"""Teachers' token log-probabilities over texts, cached."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256
from everswarm.settings import TeacherSettings

TextSource = Literal["target", "teacher", "rollout"]  # the dataset's, the teacher's own answer, the student's own


class Teacher(Record):
    """Who scored, and how. Two caches of which any field differs are different caches."""

    asked: TeacherSettings  # as it was asked for
    model: str
    revision: str  # sha256 of the weights or of the GGUF; `as served` where only the server knows
    quantization: str  # float32, float16, nf4, that of the GGUF, or `as served`
    template: str  # of the prompt it read, with its version; says whether it had hindsight


class TeacherCache(Record):
    """What one teacher said of the training texts of one dataset.

    `training/distillation/target_shards.py` describes the parquet files.
    """

    teacher: Teacher
    shards: list[Artifact]
    texts: dict[TextSource, int]  # how many of each kind
    tokens: int  # the teacher's, with log-probabilities; 0 when it gave text only
    text_bytes: int
    top_k: int
    top_k_mass: float  # mean probability inside the k


class SoftTargets(Record):
    """Cached soft targets for the training examples of one dataset, a cache a teacher."""

    schema_version: Literal[2] = 2
    dataset: Sha256
    caches: list[TeacherCache] = Field(min_length=1)
    digest: Sha256  # sha256 over the digests of all shards in order: the identity of the whole

    @model_validator(mode="before")
    @classmethod
    def _from_first_version(cls, data: Any) -> Any:
        """Read the record of a cycle from when there was one teacher, the student in hindsight."""
        if not isinstance(data, dict) or data.get("schema_version") != 1:
            return data
        told = data["teacher"]
        kept = ("shards", "tokens", "text_bytes", "top_k", "top_k_mass")
        teacher = {
            "asked": {"hindsight": told["hindsight"]},
            "model": told["model"],
            "revision": told["weights_sha256"],
            "quantization": "float32",
            "template": told["template"],
        }
        cache = {"teacher": teacher, "texts": {}} | {name: data[name] for name in kept}
        return {"dataset": data["dataset"], "caches": [cache], "digest": data["digest"]}

    @property
    def tokens(self) -> int:
        """Return how many tokens have log-probabilities."""
        return sum(cache.tokens for cache in self.caches)


class LabelCheckpoint(Record):
    """What is finished, in order; a restarted worker begins after it."""

    finished: list[TeacherCache] = Field(default_factory=list)
    shards: list[Artifact] = Field(default_factory=list)  # from here on: of the teacher under way
    texts: dict[TextSource, int] = Field(default_factory=dict)
    tokens: int = 0
    text_bytes: int = 0
    mass_sum: float = 0.0
    batch: str | None = None  # what the server is answering for the next shard
