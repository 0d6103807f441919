"""What leaves the server: with consent, scrubbed, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from everswarm.errors import BadRequestError, NotFoundError
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.dataset import Dataset, DatasetCard
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.database import Database
from everswarm.server.feedback import import_file, judged_interactions, store_batch
from everswarm.server.feedback.files import exporter
from everswarm.server.feedback.files.dataset_card import front_matter
from everswarm.server.feedback.files.export_formats import ExportFormat
from everswarm.server.feedback.files.exporter import ExportReport, export_feedback
from everswarm.server.feedback.files.versions import export_version
from everswarm.server.feedback.scrubbing import pattern_scrubber
from everswarm.server.feedback.tables import feedback
from everswarm.server.registry.service import ArtifactStore
from everswarm.settings import CurationRules

EMAIL = "ann.miller@example.com"


def judged(number: int, **values: Any) -> JudgedInteraction:
    fields = {
        "id": f"i-{number:03}",
        "device_id": f"phone-{number % 2}",
        "timestamp": "2026-01-02T03:04:05Z",
        "messages": [{"role": "user", "content": f"Question {number} of {EMAIL}?"}],
        "response": f"Answer {number}.",
        "model": "org/model",
        "language": "en",
        "consent": True,
    }
    return JudgedInteraction.model_validate(fields | values)


RECORDS = [
    judged(1, rating=1, correction="Better 1."),
    judged(2, rating=5, comment="good"),
    judged(3, liked=False),
    judged(4, liked=True, better_than=["Worse 4.", "Worst 4."], keep_days=40_0),
    judged(5, rating=3, copied=True, regenerated=True, judge_score=0.25),
    judged(6, rating=5, consent=False),
]


@pytest.fixture
def filled(database: Database) -> Database:
    store_batch(database, RECORDS, source="import")
    return database


def export(database: Database, target: Path, form: ExportFormat = "jsonl", **options: Any) -> ExportReport:
    return export_feedback(database, target, form=form, **{"scrubber": pattern_scrubber(), **options})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_leaves_has_consent_no_personal_data_and_no_names(filled: Database, tmp_path: Path):
    report = export(filled, tmp_path / "out.jsonl")
    assert (report.read, report.written, report.without_consent, report.masked) == (6, 5, 1, {"email": 5})
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert EMAIL not in text and "phone-" not in text and "[EMAIL_1]" in text
    assert {line["device_id"] for line in lines(tmp_path / "out.jsonl")} == {
        filled.seal.pseudonym(f"phone-{number}") for number in (0, 1)
    }
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o600


def test_raw_export_imported_into_another_home_is_the_same(filled: Database, tmp_path: Path):
    export(filled, tmp_path / "out.jsonl", scrubber=None, everyone=True)
    other = Database(f"sqlite:///{tmp_path / 'other.sqlite'}")
    other.migrate()
    assert import_file(other, tmp_path / "out.jsonl")[:5] == (6, 6, 0, [], 0)
    with filled.read() as here, other.read() as there:
        assert list(judged_interactions(there)) == list(judged_interactions(here))
    export(other, tmp_path / "again.jsonl", scrubber=None, everyone=True)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    other.close()


def test_scrubbed_export_can_be_imported(filled: Database, tmp_path: Path):
    export(filled, tmp_path / "out.jsonl")
    other = Database(f"sqlite:///{tmp_path / 'other.sqlite'}")
    other.migrate()
    assert import_file(other, tmp_path / "out.jsonl")[:5] == (5, 5, 0, [], 0)
    other.close()


def test_corrections_of_the_swarm_do_not_become_those_of_a_person(filled: Database, tmp_path: Path):
    with filled.transaction() as connection:
        connection.execute(update(feedback).where(feedback.c.interaction_id == "i-001").values(author="swarm"))
    export(filled, tmp_path / "out.jsonl")
    assert "correction" not in lines(tmp_path / "out.jsonl")[0]
    assert export(filled, tmp_path / "sft.jsonl", "sft").written == 3


def test_sft_has_corrections_and_liked_answers(filled: Database, tmp_path: Path):
    report = export(filled, tmp_path / "sft.jsonl", "sft")
    assert (report.written, report.without_use) == (3, 2)
    found = lines(tmp_path / "sft.jsonl")
    assert [line["completion"] for line in found] == [
        [{"role": "assistant", "content": text}] for text in ("Better 1.", "Answer 2.", "Answer 4.")
    ]
    assert found[0]["prompt"] == [{"role": "user", "content": "Question 1 of [EMAIL_1]?"}]


def test_dpo_has_corrections_over_answers_and_winners_over_losers(filled: Database, tmp_path: Path):
    export(filled, tmp_path / "dpo.jsonl", "dpo")
    pairs = [(line["chosen"][0]["content"], line["rejected"][0]["content"]) for line in lines(tmp_path / "dpo.jsonl")]
    assert pairs == [("Better 1.", "Answer 1."), ("Answer 4.", "Worse 4."), ("Answer 4.", "Worst 4.")]


def test_kto_has_what_was_found_good_or_bad_and_nothing_between(filled: Database, tmp_path: Path):
    export(filled, tmp_path / "kto.jsonl", "kto")
    found = lines(tmp_path / "kto.jsonl")
    assert [(line["completion"][0]["content"], line["label"]) for line in found] == [
        ("Answer 1.", False),
        ("Answer 2.", True),
        ("Answer 3.", False),
        ("Answer 4.", True),
    ]


def test_all_has_those_without_consent_too_and_marks_them(filled: Database, tmp_path: Path):
    report = export(filled, tmp_path / "out.jsonl", everyone=True)
    assert (report.written, report.without_consent) == (6, 1)
    assert [line.get("consent", False) for line in lines(tmp_path / "out.jsonl")] == [True] * 5 + [False]


def test_what_is_there_stays_unless_it_is_to_be_replaced(filled: Database, tmp_path: Path):
    target = tmp_path / "out.jsonl"
    target.write_text("mine", encoding="utf-8")
    with pytest.raises(BadRequestError, match=r"is there already\. Name another file, or replace it with --force"):
        export(filled, target)
    assert target.read_text(encoding="utf-8") == "mine"
    export(filled, target, force=True)
    assert len(lines(target)) == 5
    with pytest.raises(BadRequestError, match=r"The folder .* is not there"):
        export(filled, tmp_path / "no" / "out.jsonl")


@pytest.mark.parametrize("form", ["jsonl", "datasets"])
def test_export_that_fails_leaves_nothing_and_what_was_there(
    filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: ExportFormat
):
    folder = tmp_path / "place"
    folder.mkdir()
    export(filled, folder / "out", form)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full(line: object) -> list[Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exporter.LINES_OF, form, full)
    with pytest.raises(OSError, match="No space"):
        export(filled, folder / "out", form, force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_nothing_to_export_is_said_with_its_reasons(database: Database, tmp_path: Path):
    store_batch(database, [judged(1, rating=3), judged(2, rating=5, consent=False)], source="import")
    with pytest.raises(NotFoundError, match=r"as sft: of 2 judged interactions 1 have no consent \(--all exports"):
        export(database, tmp_path / "sft.jsonl", "sft")
    assert not list(tmp_path.glob("*sft*"))


def test_folder_with_other_things_is_never_replaced(filled: Database, tmp_path: Path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "thesis.tex").write_text("years", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(BadRequestError):
            export(filled, target, "datasets", force=force)
    assert (target / "thesis.tex").read_text(encoding="utf-8") == "years"


def test_language_that_yaml_takes_for_no_is_quoted():
    assert '- "no"' in front_matter(5, languages=["no", "pt-BR"], configs={"default": {"train": "x"}})


def test_parquet_has_all_fields(filled: Database, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export(filled, tmp_path / "out.parquet", "parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert len(rows) == 5
    assert rows[3]["better_than"] == ["Worse 4.", "Worst 4."]
    assert (rows[3]["liked"], rows[3]["written_by"], rows[3]["looked_up"], rows[3]["review"]) == (
        True,
        "person",
        False,
        None,
    )
    assert (rows[4]["judge_score"], rows[4]["copied"], rows[0]["rating"]) == (0.25, True, 1)


def test_folder_is_loaded_by_datasets(filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    export(filled, tmp_path / "folder", "datasets")
    loaded = datasets.load_dataset(str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert [row["id"] for row in loaded["train"]] == ["i-001", "i-002", "i-003", "i-004", "i-005"]
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: other\n") and '- "en"' in card and "masked by pattern (5 × email)" in card
    export(filled, tmp_path / "folder", "datasets", force=True)


def test_dataset_version_is_loaded_with_its_splits_and_configs(database: Database, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    store = ArtifactStore(str(tmp_path / "artifacts"), database)

    def stored(name: str, rows: list[dict[str, Any]]) -> Any:
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        return store.put_file(tmp_path / name, kind=ArtifactKind.DATASET)

    splits = ["train"] * 8 + ["validation", "test"]
    examples = stored("dataset.parquet", [{"id": f"i{n}", "split": s, "target": "x"} for n, s in enumerate(splits)])
    preferences = stored("pairs.parquet", [{"id": "i0", "split": "train", "chosen": "a", "rejected": "b"}])
    counts = {"train": 8, "validation": 1, "test": 1}
    card = DatasetCard(
        read=12,
        dropped=[{"step": "consent", "reason": "none | given", "count": 2}],
        examples=counts,
        users=counts,
        shares={"train": 0.8, "validation": 0.1, "test": 0.1},
        sources={"correction": 10},
        tasks={"other": 10},
        languages={"en": 9, "und": 1},
        preferences={"train": 1},
        desirabilities={},
        for_review={},
        masked={},
        largest_user_share=0.1,
        rules=CurationRules(),
        seed=0,
        parents=["a" * 64],
    )
    version = Dataset(data=examples, preferences=preferences, card=card, split_of_user={})
    assert export_version(store, version, tmp_path / "out", force=False) == {"default": 10, "preferences": 1}
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == counts
    pairs = datasets.load_dataset(str(tmp_path / "out"), "preferences", cache_dir=str(tmp_path / "cache"))
    assert pairs["train"][0] == {"id": "i0", "chosen": "a", "rejected": "b"}
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| consent | none / given | 2 |" in text and "12 records were read, 10 became examples" in text
