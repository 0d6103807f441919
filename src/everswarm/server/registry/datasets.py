"""Dataset versions that were made without a cycle: their records among the artifacts, by name."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import Connection, select

from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Dataset
from everswarm.server.registry.repository import find_artifact
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import Storage
from everswarm.server.registry.tables import artifacts

NAME_PREFIX = "dataset-"
DIGEST_CHARACTERS = 12  # of the dataset's sha256, in the name of its record


class KeptDataset(NamedTuple):
    """A dataset version and what it was made of."""

    name: str  # dataset-3f2a91c40bd1
    made_at: datetime
    dataset: Dataset
    snapshot: Artifact | None  # None: it was never stored here


def keep_dataset(store: ArtifactStore, dataset: Dataset) -> Artifact:
    """Store the record of `dataset`, before its files: so whatever is cut off afterwards, an erasure finds them."""
    name = f"{name_of(dataset)}.json"
    return store.put_bytes(dataset.model_dump_json().encode(), kind=ArtifactKind.RECORD, name=name)


def name_of(dataset: Dataset) -> str:
    """Return what a dataset without a cycle is called."""
    return NAME_PREFIX + dataset.data.sha256[:DIGEST_CHARACTERS]


def kept_datasets(connection: Connection, storage: Storage) -> list[KeptDataset]:
    """Return the datasets that `keep_dataset` recorded, the newest first; one whose record is gone is passed over."""
    is_record = (artifacts.c.kind == ArtifactKind.RECORD.value) & artifacts.c.name.like(f"{NAME_PREFIX}%.json")
    wanted = select(artifacts.c.sha256, artifacts.c.created_at).where(is_record)
    found = []
    for row in connection.execute(wanted.order_by(artifacts.c.created_at.desc(), artifacts.c.sha256)).all():
        try:
            with storage.open(row.sha256) as file:
                dataset = Dataset.model_validate_json(file.read())
        except (OSError, ValidationError):
            continue
        snapshot = find_artifact(connection, dataset.card.parents[0]) if dataset.card.parents else None
        found.append(KeptDataset(name_of(dataset), row.created_at, dataset, snapshot))
    return found
