"""A curated dataset version as a folder that `datasets.load_dataset` and the Hub's viewer read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.errors import MissingExtraError
from everswarm.schemas.artifact import Artifact
from everswarm.schemas.dataset import SPLITS, Dataset
from everswarm.server.feedback.files.dataset_card import version_card
from everswarm.server.feedback.files.replacing import CARD_NAME, DATA_NAME, written_folder
from everswarm.server.registry.service import ArtifactStore

if TYPE_CHECKING:
    import pyarrow

DEFAULT = "default"  # the config of the examples


def export_version(store: ArtifactStore, dataset: Dataset, target: Path, *, force: bool) -> dict[str, int]:
    """Write a dataset version with its card to the folder `target`, whole or not at all.

    Args:
        store: holds the files of the dataset.
        dataset: which.
        target: a folder; each config of it has a folder of its own, with a file a split that is not empty.
        force: replace `target`.

    Returns:
        How many rows each config has.

    Raises:
        BadRequestError: `target` is there, or cannot be written.
        NotFoundError: a file of the dataset is gone.
        MissingExtraError: parquet needs the training extra.
    """
    parts = {DEFAULT: dataset.data, "preferences": dataset.preferences, "desirabilities": dataset.desirabilities}
    rows: dict[str, int] = {}
    configs: dict[str, dict[str, str]] = {}
    with written_folder(target, force=force) as folder:
        for name, artifact in parts.items():
            written = {} if artifact is None else _write_splits(store, artifact, folder / DATA_NAME / name)
            if written:
                rows[name] = sum(written.values())
                configs[name] = {split: f"{DATA_NAME}/{name}/{split}-*.parquet" for split in written}
        (folder / CARD_NAME).write_text(version_card(dataset, configs=configs), encoding="utf-8")
    return rows


def _write_splits(store: ArtifactStore, artifact: Artifact, folder: Path) -> dict[str, int]:
    """Write a file a split; return the rows of those that have any."""
    try:
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Writing a dataset", "training") from error
    with store.open(artifact.sha256) as file:
        table: pyarrow.Table = pyarrow.parquet.read_table(file)
    folder.mkdir(mode=0o700, parents=True)
    found: dict[str, int] = {}
    for split in SPLITS:
        part: Any = table.filter(pyarrow.compute.equal(table["split"], split)).drop_columns(["split"])
        if part.num_rows:
            pyarrow.parquet.write_table(part, folder / f"{split}-00000-of-00001.parquet", compression="zstd")
            found[split] = part.num_rows
    return found
