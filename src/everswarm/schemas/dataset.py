"""A curated, versioned, immutable set of instruction-response pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256
from everswarm.schemas.evaluation import Incumbent
from everswarm.schemas.interaction import Message

Split = Literal["train", "validation", "test"]
# train is learnt from, test is scored; validation is set aside for comparing recipes, and no stage reads it
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Example(Record):
    """One instruction-response pair. `source` says whether a person wrote the target or liked the model's."""

    id: str  # of the interaction it came from
    user: str
    split: Split
    messages: list[Message]
    target: str
    source: Literal["correction", "answer"]


class Dropped(Record):
    """How many records one curation step took out, and why."""

    step: str
    reason: str
    count: int


class DatasetCard(Record):
    """What is in a dataset. `read` = the sum of `examples` + the sum of `dropped`, always."""

    schema_version: Literal[1] = 1
    read: int
    dropped: list[Dropped]
    examples: dict[Split, int]
    users: dict[Split, int]
    shares: dict[Split, float]
    sources: dict[str, int]
    seed: int
    parents: list[Sha256]  # the snapshot
    licence: str = "as consented to by the contributors; see the snapshot"


class Dataset(Record):
    """A dataset version; its identity is `data.sha256`. Columns of the parquet file: those of `Example`."""

    data: Artifact
    card: DatasetCard
    split_of_user: dict[str, Split] = Field(repr=False)  # kept by later datasets, so a test user never trains


class Snapshot(Record):
    """The judged interactions, frozen when a cycle starts, and what the cycle must be measured against."""

    data: Artifact  # JSON lines of JudgedInteraction, sorted by id
    interactions: int
    incumbent: Incumbent | None
    split_of_user: dict[str, Split] = Field(repr=False)  # of the latest dataset
