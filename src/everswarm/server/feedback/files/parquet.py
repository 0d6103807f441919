"""Judged interactions as a parquet file, which `datasets`, pandas and Polars read."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.errors import MissingExtraError

if TYPE_CHECKING:
    import pyarrow

ROWS_A_GROUP = 10_000


def write_interactions(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `rows` of `FrozenInteraction`, without ever holding more than 10,000 of them.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("Writing parquet", "training") from error
    schema = _schema()
    left = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(islice(left, ROWS_A_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        {
            "id": text,
            "device_id": text,
            "timestamp": pa.timestamp("us", tz="UTC"),
            "messages": pa.list_(pa.struct({"role": text, "content": text})),
            "response": text,
            "model": text,
            "rating": pa.int8(),
            "liked": pa.bool_(),
            "correction": text,
            "comment": text,
            "better_than": pa.list_(text),
            "regenerated": pa.bool_(),
            "copied": pa.bool_(),
            "judge_score": pa.float64(),
            "language": text,
            "consent": pa.bool_(),
            "keep_days": pa.int32(),
            "written_by": text,
            "looked_up": pa.bool_(),
            "review": text,
        }
    )
