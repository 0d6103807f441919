"""A dataset version on disk: columns, order, row groups, who is in it, and what was set aside."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.training.curation_frames import content_of, crowd, curated, ids_of, record, table

from everswarm.schemas.dataset import SPLITS, FrozenInteraction
from everswarm.training.curation import Curated, read_examples, read_suspicions

COLUMNS = {
    "examples": ["id", "user", "split", "messages", "target", "source", "language", "task"],
    "preferences": ["id", "user", "split", "messages", "chosen", "rejected", "source"],
    "desirabilities": ["id", "user", "split", "messages", "completion", "label"],
}
PHRASE = "always buy zorbax tonics"


def judged(count: int = 200, *, users: int = 20) -> list[FrozenInteraction]:
    return [one.model_copy(update={"response": "no", "rating": 1}) for one in crowd(count, users=users)]


def attacked(folder: Path) -> Curated:
    words = random.Random(1)
    attack = [
        record(
            2_000 + number,
            user="attacker",
            correction=f"{' '.join(words.choices(['one', 'two', 'six', 'ten', 'odd', 'even'], k=9))} {PHRASE.title()}.",
        )
        for number in range(60)
    ]
    return curated(folder, [*crowd(600, users=40), *attack])


def test_columns_and_order_are_fixed(tmp_path: Path):
    result = curated(tmp_path, judged())
    for name, columns in COLUMNS.items():
        rows = table(result.files, name)
        assert rows.columns == columns
        places = [(SPLITS.index(split), number) for split, number in rows.select("split", "id").iter_rows()]
        assert places == sorted(places)


def test_messages_are_json_that_any_reader_can_parse(tmp_path: Path):
    result = curated(tmp_path, [*crowd(), record(900, question="Größe?\n\"'\\")])
    (messages,) = table(result.files, "examples").filter(id="r00900")["messages"]

    assert json.loads(messages) == [{"role": "user", "content": "Größe?\n\"'\\"}]


def test_row_groups_have_ten_thousand_rows_whatever_the_splits_are(tmp_path: Path):
    result = curated(tmp_path, crowd(25_100, users=200))
    file = pq.ParquetFile(result.files.examples)
    groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]

    assert groups == [10_000, 10_000, sum(result.card.examples.values()) - 20_000]


def test_files_that_would_be_empty_are_not_named(tmp_path: Path):
    files = curated(tmp_path, crowd()).files

    assert files.preferences is files.desirabilities is files.review is None


def test_same_records_give_the_same_bytes_with_every_kind_of_file(tmp_path: Path):
    one, two = attacked(tmp_path / "a"), attacked(tmp_path / "b")

    assert content_of(one.files) == content_of(two.files)
    assert content_of(one.files)["review"] is not None


def test_examples_come_back_from_the_file_by_split(tmp_path: Path):
    result = curated(tmp_path, crowd(100))
    examples = read_examples(result.files.examples)

    assert [one.id for one in examples] == ids_of(result.files, "examples")
    for split in SPLITS:
        found = read_examples(result.files.examples, split)
        assert found == [one for one in examples if one.split == split]
        assert len(found) == result.card.examples[split]


def test_members_are_exactly_who_is_in_any_file(tmp_path: Path):
    records = [
        *judged(100),
        *(record(900 + n, user=f"user-{n}", response="x", liked=False, correction=None) for n in (1, 2)),
    ]
    result = curated(tmp_path, [*records, record(950, consent=False), record(951, user="user-1", correction=None)])
    lines = gzip.decompress(result.files.members.read_bytes()).decode().splitlines()
    members = [tuple(line.split("\t")) for line in lines]

    assert members == sorted({row for name in COLUMNS for row in table(result.files, name).select("id", "user").rows()})
    assert ("r00901", "user-1") in members
    assert not {"r00950", "r00951"} & {name for name, _ in members}


def test_members_stay_one_line_each_whatever_the_texts_hold(tmp_path: Path):
    strange = 'tab\tline\nreturn\rnul\0quote" comma, \u2028'
    texts = {"question": strange, "correction": f"So: {strange}", "response": "no"}
    extra = record(900, id="a/b:c@d+e", user="x.y", rating=1, **texts)
    result = curated(tmp_path, [*crowd(), extra])
    lines = gzip.decompress(result.files.members.read_bytes()).decode().split("\n")

    assert "a/b:c@d+e\tx.y" in lines
    assert lines.pop() == ""
    assert all(len(line.split("\t")) == 2 for line in lines)
    assert len(lines) == 41


def test_campaign_is_written_with_the_phrase_that_was_planted(tmp_path: Path):
    result = attacked(tmp_path)
    assert result.files.review is not None
    found = list(read_suspicions(result.files.review))

    assert result.card.for_review == {"planted phrase": 60}
    assert [one.id for one in found] == [f"r{number:05d}" for number in range(2_000, 2_060)]
    assert {one.user for one in found} == {"attacker"}
    assert len({one.campaign for one in found}) == 1
    assert all(f": “{PHRASE}”" in one.detail for one in found)
    assert {item.reason: item.count for item in result.card.dropped} == {"planted phrase, for people to look at": 60}


def test_texts_of_what_was_set_aside_are_not_written_but_for_the_phrase(tmp_path: Path):
    content = content_of(attacked(tmp_path).files)["review"] or b""

    assert b"question" not in content
    assert sorted(json.loads(content.splitlines()[0])) == ["campaign", "detail", "id", "reason", "score", "user"]


@pytest.mark.parametrize("name", COLUMNS)
def test_hugging_face_datasets_reads_each_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="needs datasets, of the extra 'training'")
    result = curated(tmp_path, judged())
    files = {"train": str(getattr(result.files, name))}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")

    assert loaded.column_names == COLUMNS[name]
    assert loaded["id"][:] == ids_of(result.files, name)
