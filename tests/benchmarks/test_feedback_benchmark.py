"""The benchmark of curation: its records are what it says they are, and its rows have their limits."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.feedback import rows as feedback
from benchmarks.feedback.curation import Run, measure, rows_of
from benchmarks.feedback.curation_records import write_records

from benchmarks import __main__ as door
from everswarm.schemas.dataset import FrozenInteraction

RECORDS = 3_000


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[FrozenInteraction]:
    path = tmp_path_factory.mktemp("records") / "snapshot.jsonl"
    write_records(path, RECORDS)
    return [FrozenInteraction.model_validate_json(line) for line in path.read_bytes().splitlines()]


def run_of(records: int, *, wall_seconds: float, cpu_seconds: float, peak_mb: float) -> Run:
    return Run(
        records=records,
        line_bytes=1000.0,
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        peak_mb=peak_mb,
        kept=records // 2,
        steps={"reading": wall_seconds / 2, "writing": 1.0},
    )


def test_records_are_in_order_and_of_the_promised_shares(records: list[FrozenInteraction]) -> None:
    ids = [record.id for record in records]
    assert ids == sorted(set(ids))
    assert len(ids) == RECORDS
    questions = Counter(record.messages[-1].content for record in records)
    users = Counter(record.device_id for record in records)
    assert 0.10 < 1 - len(questions) / RECORDS < 0.20
    assert 0.35 < sum(record.correction is not None for record in records) / RECORDS < 0.45
    assert 0.95 < sum(record.consent for record in records) / RECORDS < 0.99
    assert RECORDS / 50 * 0.8 < len(users) < RECORDS / 50 * 1.2
    assert max(users.values()) > 3 * RECORDS / len(users)
    assert {record.rating for record in records} == {1, 2, 3, 4, 5}


def test_the_same_seed_gives_the_same_bytes_of_a_kilobyte_a_line(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        write_records(tmp_path / name, 500, seed=seed)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()
    assert (tmp_path / "first").read_bytes() != (tmp_path / "other").read_bytes()
    assert 950 < (tmp_path / "first").stat().st_size / 500 < 1100


def test_a_run_counts_all_processes_and_every_step() -> None:
    run = measure(2_000)
    assert (run.records, 0 < run.kept < 2_000) == (2_000, True)
    assert run.cpu_seconds > 0
    assert run.peak_mb > 50
    assert {"reading", "poisoning", "split", "writing"} <= set(run.steps)


def test_a_run_that_fails_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.feedback.curation.write_records", lambda path, _records: path.write_text("{}\n"))
    with pytest.raises(SystemExit, match="ended with code 1"):
        measure(1)


def test_rows_have_the_limits_of_the_table() -> None:
    few = run_of(100_000, wall_seconds=20.0, cpu_seconds=30.0, peak_mb=900.0)
    many = run_of(1_000_000, wall_seconds=200.0, cpu_seconds=333.0, peak_mb=4100.0)
    wall, memory, growth = rows_of(few, many)
    assert (wall.metric, wall.value, wall.must, wall.reach, wall.meets_must) == (
        "curate 1,000,000 interactions of 1 KB: wall on 2 cores", 200.0, 480.0, 240.0, True,
    )  # fmt: skip
    assert (memory.value, memory.must, memory.reach, memory.meets_must) == (4100, 4096.0, 2048.0, False)
    assert (growth.value, growth.must, growth.reach, growth.meets_must) == (11.1, 11.0, 10.0, False)
    assert "333 CPU seconds; 500,000 examples kept; reading 100 s, writing 1 s" in wall.how


def test_the_benchmark_is_run_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(feedback, "run", lambda *, quick: asked.append(quick))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "feedback", "--quick"])
    door.main()
    assert asked == [True]


def test_a_quick_look_keeps_no_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(2_000, wall_seconds=1.0, cpu_seconds=1.0, peak_mb=1.0)
    monkeypatch.setattr("benchmarks.feedback.ingest.rows", lambda **_: [])
    monkeypatch.setattr("benchmarks.feedback.curation.rows", lambda **_: rows_of(run, run))
    kept: list[str] = []
    monkeypatch.setattr(feedback, "save", lambda name, _rows: kept.append(name))
    feedback.run(quick=True)
    assert kept == []
    assert "interactions of 1 KB" in capsys.readouterr().out
    feedback.run()
    assert kept == ["feedback"]
