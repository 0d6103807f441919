"""Snapshots and datasets on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from everswarm.errors import BadRequestError
from everswarm.schemas.dataset import Example, Split
from everswarm.schemas.interaction import JudgedInteraction, Message

_COLUMNS = ("id", "user", "split", "messages", "target", "source")
_ROWS_A_GROUP = 10_000  # fixed, as is everything else that shapes the bytes


def read_snapshot(path: Path) -> Iterator[JudgedInteraction]:
    """Yield the judged interactions of a snapshot (JSON lines).

    Raises:
        BadRequestError: a line is not such a record; names the line.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield JudgedInteraction.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"]) or "the line"
                raise BadRequestError(
                    f"{path.name}, line {number}: {where}: {first['msg']}. Mend or remove the line, then start again."
                ) from error


def write_examples(examples: Sequence[Example], path: Path) -> None:
    """Write a dataset as parquet, one row an example; `messages` is JSON text. Same examples, same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**example.model_dump(exclude={"messages"}), "messages": _messages_text(example)} for example in examples]
    table = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in _COLUMNS})
    pq.write_table(
        table, path, compression="zstd", compression_level=3, row_group_size=_ROWS_A_GROUP, store_schema=False
    )


def _messages_text(example: Example) -> str:
    return json.dumps([message.model_dump() for message in example.messages], ensure_ascii=False)


def read_examples(path: Path, split: Split | None = None) -> list[Example]:
    """Read a dataset, or one split of it, in the order of the file."""
    import pyarrow.parquet as pq

    filters = None if split is None else [("split", "=", split)]
    return [
        Example(**{**row, "messages": [Message(**message) for message in json.loads(row["messages"])]})
        for row in pq.read_table(path, columns=list(_COLUMNS), filters=filters).to_pylist()
    ]
