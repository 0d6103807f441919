"""A curated, versioned, immutable set of instruction-response pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from everswarm.schemas.artifact import Artifact
from everswarm.schemas.base import Record, Sha256
from everswarm.schemas.evaluation import Incumbent
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.settings import CurationRules

Source = Literal["correction", "answer"]
Split = Literal["train", "validation", "test"]
# train is learnt from, test is scored; validation is set aside for comparing recipes, and no stage reads it
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class FrozenInteraction(JudgedInteraction):
    """One line of a snapshot: a judged interaction without personal data, its user by a pseudonym."""

    written_by: Literal["person", "swarm"] = "person"  # whose words the correction is
    looked_up: bool = False  # the answer rests on what a tool found, which a student will not have
    review: Literal["accepted", "rejected"] | None = None  # what reviewers decided


class Example(Record):
    """One instruction-response pair. `source` says whether a person wrote the target or liked the model's."""

    id: str  # of the interaction it came from
    user: str  # a pseudonym
    split: Split
    messages: list[Message]
    target: str
    source: Source
    language: str = "und"  # two letters, or und
    task: str = "other"


class Preference(Record):
    """Two answers to one prompt, of which the first is better: TRL's DPO format, conversational."""

    id: str
    user: str
    split: Split
    prompt: list[Message]
    chosen: str
    rejected: str
    source: Literal["correction", "vote"]


class Desirability(Record):
    """An answer that somebody liked, or did not: TRL's KTO format, conversational."""

    id: str
    user: str
    split: Split
    prompt: list[Message]
    completion: str
    label: bool


class Dropped(Record):
    """How many records one curation step took out, and why."""

    step: str
    reason: str
    count: int


class DatasetCard(Record):
    """What is in a dataset. `read` = the sum of `examples` + the sum of `dropped`, always."""

    schema_version: Literal[1] = 1
    read: int
    dropped: list[Dropped]  # in the order of the steps
    examples: dict[Split, int]
    users: dict[Split, int]
    shares: dict[Split, float]
    sources: dict[str, int]
    tasks: dict[str, int] = Field(default_factory=dict)
    languages: dict[str, int] = Field(default_factory=dict)
    preferences: dict[Split, int] = Field(default_factory=dict)
    desirabilities: dict[Split, int] = Field(default_factory=dict)
    for_review: dict[str, int] = Field(default_factory=dict)  # reason → records that were set aside
    masked: dict[str, int] = Field(default_factory=dict)  # kind of personal data → how often, in the snapshot
    largest_user_share: float = 0.0  # of the training split
    rules: CurationRules = CurationRules()
    seed: int
    parents: list[Sha256]  # the snapshot, and the fingerprints of the evaluation suites
    licence: str = "as consented to by the contributors; see consent"
    consent: str = "each record's contributor has consented to training, and may withdraw: everswarm feedback erase"


class Dataset(Record):
    """A dataset version; its identity is `data.sha256`. Columns of the parquet file: those of `Example`."""

    data: Artifact
    preferences: Artifact | None = None  # parquet of `Preference`
    desirabilities: Artifact | None = None  # parquet of `Desirability`
    members: Artifact | None = None  # gzip of lines `id TAB user`: who is in any of these files
    review: Artifact | None = None  # JSON lines of `Suspicion`
    card: DatasetCard
    split_of_user: dict[str, Split] = Field(repr=False)  # kept by later datasets, so a test user never trains


class SuiteFingerprints(Record):
    """What the evaluation suites are made of, so that no dataset teaches to the test: 64-bit hashes of word 13-grams.

    A text of fewer words has one hash, of all its words. `training/curation/words.py` says how they are made.
    """

    schema_version: Literal[1] = 1
    suites: list[str]
    words: int = 13
    hashes: list[int] = Field(repr=False)


class Snapshot(Record):
    """The judged interactions, frozen when a cycle starts, and what the cycle must be measured against."""

    data: Artifact  # JSON lines of FrozenInteraction, sorted by id
    interactions: int
    without_consent: int = 0  # judged, and left out
    masked: dict[str, int] = Field(default_factory=dict)  # kind of personal data → how often
    incumbent: Incumbent | None
    split_of_user: dict[str, Split] = Field(repr=False)  # of the latest dataset
