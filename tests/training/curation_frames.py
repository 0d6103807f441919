"""Snapshots made by hand: what curation reads, and what a test wants to know of the result."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from everswarm.errors import BadRequestError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import FrozenInteraction, Snapshot, Split
from everswarm.schemas.interaction import Message
from everswarm.settings import CurationRules
from everswarm.training.curation import Curated, DatasetFiles, curate

START = datetime(2026, 1, 1, tzinfo=UTC)
PARQUET = ("examples", "preferences", "desirabilities")


class Row(NamedTuple):
    """Where one line of a dataset file comes from."""

    user: str
    split: str
    question: str  # all that was said, in lower case, without the difference between spaces


def record(number: int, *, user: str = "u", question: str | None = None, **fields: Any) -> FrozenInteraction:
    """Return a corrected answer, all different, with consent; `fields` change that."""
    text = question if question is not None else f"question {number}?"
    fields = {"correction": f"answer {number}", "consent": True} | fields
    return FrozenInteraction(
        **{
            "id": f"r{number:05d}",
            "device_id": user,
            "timestamp": START + timedelta(minutes=number),
            "messages": [Message(role="user", content=text)],
            **fields,
        }
    )


def crowd(count: int = 40, *, users: int = 20) -> list[FrozenInteraction]:
    """Return records of users who send equally much."""
    return [record(number, user=f"user-{number % users}") for number in range(count)]


def write_snapshot(path: Path, records: Sequence[FrozenInteraction]) -> Path:
    """Write the file of a snapshot, by id."""
    ordered = sorted(records, key=lambda item: item.id)
    path.write_text("".join(item.model_dump_json() + "\n" for item in ordered), encoding="utf-8", newline="\n")
    return path


def snapshot_of(
    path: Path,
    *,
    pinned: dict[str, Split] | None = None,
    masked: dict[str, int] | None = None,
    sha256: str | None = None,
) -> Snapshot:
    """Return what a cycle knows of the file; with a `sha256` of another one what is drawn by lot is the same there."""
    content = path.read_bytes()
    data = Artifact(
        sha256=sha256 or hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        kind=ArtifactKind.SNAPSHOT,
        name=path.name,
    )
    return Snapshot(
        data=data,
        interactions=content.count(b"\n"),
        masked=masked or {},
        incumbent=None,
        split_of_user=pinned or {},
    )


def curated(folder: Path, records: Sequence[FrozenInteraction], **options: Any) -> Curated:
    """Curate records; files go to a folder of their own under `folder`. `rules` may be a dict."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_snapshot(folder / "snapshot.jsonl", records)
    return curated_file(path, folder / "dataset", **options)


def curated_file(path: Path, out_dir: Path, **options: Any) -> Curated:
    """Curate the file of a snapshot. `rules` may be a dict."""
    out_dir.mkdir(parents=True, exist_ok=True)
    told = {name: options.pop(name) for name in ("pinned", "masked", "sha256") if name in options}
    snapshot = snapshot_of(path, **told)
    rules = options.pop("rules", None)
    chosen = CurationRules(**rules) if isinstance(rules, dict) else rules
    return curate(path, snapshot, out_dir=out_dir, rules=chosen, **{"seed": 0, "minimum_examples": 8, **options})


def dropped(result: Curated) -> dict[str, int]:
    """Return what the card says was dropped: `step: reason` → how many."""
    return {f"{item.step}: {item.reason}": item.count for item in result.card.dropped}


def accounted(result: Curated) -> int:
    """Return how many records the card speaks of."""
    return sum(result.card.examples.values()) + sum(item.count for item in result.card.dropped)


def content_of(files: DatasetFiles) -> dict[str, bytes | None]:
    """Return the bytes of each file."""
    places = (*PARQUET, "members", "review")
    return {name: None if (path := getattr(files, name)) is None else path.read_bytes() for name in places}


def table(files: DatasetFiles, name: str) -> pl.DataFrame:
    """Return one of the files as a frame; empty where there is none."""
    path = getattr(files, name)
    columns = ["id", "user", "split", "messages"]
    return pl.DataFrame(schema=dict.fromkeys(columns, pl.String)) if path is None else pl.read_parquet(path)


def rows_of(files: DatasetFiles) -> list[Row]:
    """Return all lines of the three files."""
    return [
        Row(user, split, said(messages))
        for name in PARQUET
        for user, split, messages in table(files, name).select("user", "split", "messages").iter_rows()
    ]


def ids_of(files: DatasetFiles, name: str) -> list[str]:
    """Return the ids in one of the files, in its order."""
    return table(files, name)["id"].to_list()


def said(messages: str) -> str:
    """Return what a conversation says, whatever its case and spaces."""
    return " ".join("\n".join(message["content"] for message in json.loads(messages)).lower().split())


def in_two_splits(files: DatasetFiles) -> dict[str, set[str]]:
    """Return the users and the questions that are in more than one split, over all files."""
    splits: dict[str, set[str]] = {}
    for row in rows_of(files):
        splits.setdefault(f"user {row.user}", set()).add(row.split)
        splits.setdefault(f"question {row.question}", set()).add(row.split)
    return {name: found for name, found in splits.items() if len(found) > 1}


def numbered(lines: Sequence[bytes], first_number: int) -> pl.DataFrame:
    """Return each line that is not blank, with its number and the process that read it."""
    rows = [(number, line.decode(), os.getpid()) for number, line in enumerate(lines, start=first_number) if line]
    return pl.DataFrame(rows, schema={"number": pl.Int64, "text": pl.String, "process": pl.Int64}, orient="row")


def numbered_unless_bad(lines: Sequence[bytes], first_number: int) -> pl.DataFrame:
    """Return what `numbered` does; a line `bad` is an error that names it."""
    for number, line in enumerate(lines, start=first_number):
        if line == b"bad":
            raise BadRequestError(f"snapshot.jsonl, line {number}: bad")
    return numbered(lines, first_number)


def never_done(folder: Path, lines: Sequence[bytes], first_number: int) -> pl.DataFrame:
    """Leave a file with the name of this process in `folder`, then wait for ever."""
    (folder / str(os.getpid())).touch()
    threading.Event().wait()
    return numbered(lines, first_number)
