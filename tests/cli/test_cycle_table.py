"""A cycle as tables: a line a teacher."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fakes.stage_results import artifact, result_of

from everswarm.cli.cycle_table import stage_row
from everswarm.schemas.job import Stage, StageStatus


def taught(**teacher: Any) -> dict[str, Any]:
    [cache] = result_of(Stage.LABEL)["caches"]
    fields = {name: teacher.pop(name) for name in ("tokens", "texts") if name in teacher}
    return {**cache, **fields, "teacher": {**cache["teacher"], "asked": teacher}}


@pytest.mark.parametrize(
    ("cache", "line"),
    [
        (taught(), "student in hindsight: 8 texts, 10 tokens, top 20 hold 99.0%"),
        (
            taught(source="gguf", model="/models/teacher-Q4_K_M.gguf", hindsight=False),
            "gguf teacher-Q4_K_M.gguf: 8 texts, 10 tokens, top 20 hold 99.0%",
        ),
        (
            taught(source="gguf", model="C:\\models\\teacher.gguf", hindsight=False),
            "gguf teacher.gguf: 8 texts, 10 tokens, top 20 hold 99.0%",
        ),
        (
            taught(source="vllm", model="org/big", url="http://127.0.0.1:8001/v1"),
            "vllm big in hindsight: 8 texts, 10 tokens, top 20 hold 99.0%",
        ),
        (
            taught(source="endpoint", model="primary", tokens=0, texts={"teacher": 7}),
            "endpoint primary in hindsight: 7 texts, no log-probabilities",
        ),
    ],
)
def test_label_says_who_taught_what(cache: dict[str, Any], line: str) -> None:
    assert row_of(cache)[2] == line


def test_each_teacher_has_a_line_and_the_size_is_that_of_all() -> None:
    both = row_of(taught(), {**taught(source="gguf", model="a.gguf"), "shards": [artifact("7", "soft-targets")] * 2})
    assert [line.partition(":")[0] for line in both[2].splitlines()] == [
        "student in hindsight",
        "gguf a.gguf in hindsight",
    ]
    assert both[-1] == "30 B"


def test_cycle_from_when_there_was_one_teacher_is_still_shown() -> None:
    teacher = {"model": "tiny", "weights_sha256": "1" * 64, "hindsight": True, "template": "ask-again-1"}
    numbers = {"top_k": 20, "tokens": 10, "text_bytes": 40, "top_k_mass": 0.99}
    result = {
        "schema_version": 1,
        "teacher": teacher,
        "dataset": "2" * 64,
        "shards": [artifact("3", "soft-targets")],
        "digest": "4" * 64,
        **numbers,
    }
    row = stage_row(StageStatus(stage=Stage.LABEL, state="done", result=result))
    assert (row[2], row[-1]) == ("student in hindsight: 10 tokens, top 20 hold 99.0%", "10 B")


def row_of(*caches: dict[str, Any]) -> tuple[str, ...]:
    result = {**result_of(Stage.LABEL), "caches": list(caches)}
    return stage_row(StageStatus(stage=Stage.LABEL, state="done", result=result))
