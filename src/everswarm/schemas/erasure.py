"""What somebody wants erased, what was, and what had seen it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from everswarm.schemas.base import Record, Sha256, Timestamp

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]


class ErasureRequest(Record):
    """`POST /api/erasures`. One of `user`, `device` and `interaction`; none: who asks, unless an administrator."""

    user: Name | None = None  # as an application names them, or `key-…`
    device: Name | None = None  # and what its key sent
    interaction: Name | None = None  # with the conversation that it is a part of
    files: bool = False  # delete the files of ended cycles that hold any of it, too; they hold others' texts as well
    dry_run: bool = False  # say what would go, and change nothing

    @model_validator(mode="after")
    def _names_one(self) -> ErasureRequest:
        if sum(name is not None for name in (self.user, self.device, self.interaction)) > 1:
            raise ValueError("name only one of: user, device, interaction")
        return self


class ErasedCounts(Record):
    """How many rows of each kind."""

    interactions: int = 0
    judgements: int = 0  # on these, votes against these, and what the person said of others' interactions
    reviews: int = 0
    threads: int = 0
    turns: int = 0  # of these threads
    documents: int = 0
    batches: int = 0
    batch_files: int = 0
    devices: int = 0  # enrolments
    evaluation_answers: int = 0  # questions of held-out examples, quoted in the results of cycles
    usage: int = 0  # calls that keep their cost, and no longer say for which interaction


class Seen(Record):
    """A cycle whose files hold something of it, and what was made of them."""

    cycle_id: str
    cycle_state: str  # running, released, held, failed, cancelled; curated: a dataset without a cycle
    made_at: Timestamp  # the dataset, or the snapshot where there is no dataset
    snapshot: Sha256 | None  # None: does not hold it, or its file is gone
    dataset: Sha256 | None  # None: does not hold it
    examples: int | None = None  # records of theirs in the dataset; None where it does not say
    adapter: Sha256 | None = None  # trained on the dataset
    evaluation: Sha256 | None = None  # scored with it
    release: str | None = None  # version of the release with this adapter
    role: str | None = None
    release_state: Literal["in use", "superseded"] | None = None
    device_count: int = 0  # that were told of this release last
    devices: list[str] = Field(default_factory=list)  # their ids; for an administrator only


class Erasure(Record):
    """What was erased, or with `dry_run` would be; and what had seen it."""

    schema_version: Literal[1] = 1
    dry_run: bool
    erased: ErasedCounts
    seen: list[Seen]  # the newest first
    files: int  # of ended cycles that hold any of it: deleted, or left where they were not asked for
    files_bytes: int
    files_deleted: bool
    next_steps: list[str]  # sentences
