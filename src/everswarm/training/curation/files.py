"""Datasets on disk. The same rows give the same bytes."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import polars as pl

from everswarm.schemas.base import Record
from everswarm.schemas.dataset import SPLITS, Desirability, Example, Preference, Split
from everswarm.schemas.interaction import Message
from everswarm.schemas.review import Suspicion
from everswarm.training.curation.engine import Rows
from everswarm.training.curation.marks import kept
from everswarm.training.curation.phrases import phrase_text
from everswarm.training.curation.preferences import DESIRABILITY, PREFERENCE, desirabilities, preferences
from everswarm.training.curation.prepare import WIDE

EXAMPLE = dict.fromkeys(("id", "user", "split", "messages", "target", "source", "language", "task"), pl.String)
_ROWS_A_GROUP = 10_000  # fixed, as is everything else that shapes the bytes
DETAIL_CHARACTERS = 2_000
_NEEDED = (
    *("id", "user", "split", "preference_split", "source", "by_swarm", "rating", "liked", "looked_up"),
    *("language", "task"),
)
Found = TypeVar("Found", bound=Record)


class DatasetFiles(NamedTuple):
    """Where a dataset version lies, and how much is in the files beside the examples."""

    examples: Path
    preferences: Path | None  # none where there are none
    desirabilities: Path | None
    members: Path
    review: Path | None
    preference_counts: dict[Split, int]
    desirability_counts: dict[Split, int]


def write_files(rows: Rows, frame: pl.DataFrame, suspected: pl.DataFrame, *, out_dir: Path) -> DatasetFiles:
    """Write the files of a dataset version: split by split, in each by id.

    Args:
        rows: the texts, in the order of `frame`.
        frame: what became of each row: `dropped`, `split`, `preference_split`.
        suspected: `poisoning.suspicions` with `grams`, the planted ones of the user.
        out_dir: a folder.
    """
    names = {name: out_dir / f"{name}.parquet" for name in ("dataset", "preferences", "desirabilities")}
    members = _Members()
    with (
        _Parquet(names["dataset"], EXAMPLE) as examples,
        _Parquet(names["preferences"], PREFERENCE) as pairs,
        _Parquet(names["desirabilities"], DESIRABILITY) as flags,
    ):
        for split in SPLITS:
            for batch in _with_texts(rows, frame, (pl.col("split") == split) & kept):
                examples.write(members.noted(batch.select(*EXAMPLE)), split)
            for batch in _with_texts(rows, frame, pl.col("preference_split") == split):
                pairs.write(members.noted(preferences(batch)), split)
                flags.write(members.noted(desirabilities(batch)), split)
    return DatasetFiles(
        examples=names["dataset"],
        preferences=names["preferences"] if pairs.counts.total() else None,
        desirabilities=names["desirabilities"] if flags.counts.total() else None,
        members=members.write(out_dir / "members.tsv.gz"),
        review=_write_suspicions(rows, suspected, out_dir / "review.jsonl") if len(suspected) else None,
        preference_counts={split: pairs.counts[split] for split in SPLITS},
        desirability_counts={split: flags.counts[split] for split in SPLITS},
    )


def _with_texts(rows: Rows, frame: pl.DataFrame, wanted: pl.Expr) -> Iterator[pl.DataFrame]:
    """Yield the wanted rows of `frame` with their texts, batch by batch of `rows`."""
    is_wanted = frame.select(wanted.fill_null(value=False)).to_series()
    narrow = frame.select(_NEEDED)
    start = 0
    for texts in rows.batches(WIDE):
        here = is_wanted.slice(start, len(texts))
        if here.any():
            yield pl.concat([narrow.slice(start, len(texts)), texts], how="horizontal").filter(here)
        start += len(texts)


class _Parquet:
    """A file that is written in groups of always the same size, whatever the batches are."""

    def __init__(self, path: Path, schema: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {pl.String: pa.string(), pl.Boolean: pa.bool_()}
        self.counts = Counter[str]()
        self._schema = pa.schema([(name, types[kind]) for name, kind in schema.items()])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=3, store_schema=False)
        self._waiting: list[pl.DataFrame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write_groups(least=1)
        self._writer.close()

    def write(self, batch: pl.DataFrame, split: Split) -> None:
        """Add rows."""
        self.counts[split] += len(batch)
        self._waiting.append(batch)
        self._write_groups(least=_ROWS_A_GROUP)

    def _write_groups(self, *, least: int) -> None:
        if sum(map(len, self._waiting)) < least:
            return
        together = pl.concat(self._waiting)
        while len(together) >= least:
            group = together.head(_ROWS_A_GROUP)
            table = group.to_arrow().select(self._schema.names).cast(self._schema).combine_chunks()
            self._writer.write_table(table, row_group_size=_ROWS_A_GROUP)
            together = together.slice(len(group))
        self._waiting = [together]


class _Members:
    """Who is in any of the files."""

    def __init__(self) -> None:
        self._found: list[pl.DataFrame] = []

    def noted(self, batch: pl.DataFrame) -> pl.DataFrame:
        """Note the ids and users of `batch` and return it."""
        self._found.append(batch.select("id", "user"))
        return batch

    def write(self, path: Path) -> Path:
        """Write one line an interaction, by id."""
        everybody = pl.concat(self._found).unique().sort("id", "user")
        with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
            for part in everybody.iter_slices(_ROWS_A_GROUP):
                file.write(part.write_csv(separator="\t", include_header=False, quote_style="never").encode())
        return path


def _write_suspicions(rows: Rows, suspected: pl.DataFrame, path: Path) -> Path:
    """Write what people should look at; a planted phrase is shown as the first record of its campaign has it."""
    planted = suspected.filter(pl.col("grams").is_not_null() & (pl.col("reason") == "planted phrase"))
    shown: dict[str, str] = {}
    for batch in rows.batches(["id", "target"]):
        found = batch.join(planted, on="id", maintain_order="left")
        for target, campaign, grams in found.select("target", "campaign", "grams").iter_rows():
            if campaign not in shown and (phrase := phrase_text(target, set(grams))):
                shown[campaign] = phrase
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in suspected.drop("grams").iter_rows(named=True):
            phrase = f": “{shown[row['campaign']]}”" if row["campaign"] in shown else ""
            row["detail"] = f"{row['detail']}{phrase}"[:DETAIL_CHARACTERS]
            file.write(Suspicion(**row).model_dump_json() + "\n")
    return path


def read_examples(path: Path, split: Split | None = None) -> list[Example]:
    """Read a dataset, or one split of it, in the order of the file."""
    return list(_read(path, split, Example, lambda row: {**row, "messages": _messages(row["messages"])}))


def read_preferences(path: Path, split: Split | None = None) -> list[Preference]:
    """Read the preferences of a dataset, or of one split of it, in the order of the file."""
    return list(_read(path, split, Preference, _prompted))


def read_desirabilities(path: Path, split: Split | None = None) -> list[Desirability]:
    """Read the desirabilities of a dataset, or of one split of it, in the order of the file."""
    return list(_read(path, split, Desirability, _prompted))


def read_suspicions(path: Path) -> Iterator[Suspicion]:
    """Yield what curation set aside."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Suspicion.model_validate_json(line)


def _read(
    path: Path, split: Split | None, record: type[Found], fields: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterable[Found]:
    import pyarrow.parquet as pq

    filters = None if split is None else [("split", "=", split)]
    for row in pq.read_table(path, filters=filters).to_pylist():
        yield record(**fields(row))


def _prompted(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in row.items() if name != "messages"}, "prompt": _messages(row["messages"])}


def _messages(text: str) -> list[Message]:
    return [Message(**message) for message in json.loads(text)]
