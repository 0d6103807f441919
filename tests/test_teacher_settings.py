"""Teachers as people write them: in a command, in everswarm.toml, in a variable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from everswarm.errors import ConfigurationError
from everswarm.settings import TeacherSettings, load_settings, parse_teacher

FORMS = "Write student, weights:NAME-OR-FOLDER, gguf:PATH, endpoint:MODEL or vllm:NAME@http://HOST:PORT/v1."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("student", TeacherSettings()),
        ("weights:org/teacher", TeacherSettings(source="weights", model="org/teacher")),
        ("gguf:/models/a b.gguf", TeacherSettings(source="gguf", model="/models/a b.gguf")),
        ("endpoint:mistral:7b-instruct", TeacherSettings(source="endpoint", model="mistral:7b-instruct")),
        (
            "vllm:org/big@http://127.0.0.1:8001/v1",
            TeacherSettings(source="vllm", model="org/big", url="http://127.0.0.1:8001/v1"),
        ),
    ],
)
def test_each_form_names_its_teacher_and_is_what_the_teacher_calls_itself(text: str, expected: TeacherSettings) -> None:
    assert parse_teacher(text) == expected
    assert expected.name == text


@pytest.mark.parametrize("text", ["", "gpt", "teacher:x", "gguf", "gguf:", "student:x", "/models/a.gguf"])
def test_what_is_no_form_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_teacher(text)
    assert str(caught.value) == f"'{text}' names no teacher. {FORMS}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("vllm:org/big", "a teacher of source 'vllm' needs a url, such as http://127.0.0.1:8001/v1"),
        ("vllm:@http://127.0.0.1:8001/v1", "a teacher of source 'vllm' needs a model"),
        ("vllm:org/big@http://", "should be an http:// or https:// address"),
    ],
)
def test_vllm_server_needs_a_name_and_an_address(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_teacher(text)


def test_credential_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="EVERSWARM_TEACHER_KEY") as caught:
        parse_teacher("vllm:org/big@http://ada:hush@127.0.0.1:8001/v1")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "VLLM:m@http://u:hush@h/v1",
        "vllm:m@HTTP://u:hush@h/v1",
        "vllm:m@ftp://u:hush@h/v1",
        "vllm:m@http:/u:hush@h/v1",
        "VLLM:m@http:/u:hush@h/v1",
        "vllm m@http://u:hu@hush@h/v1",
        "http://u:hush@h/v1",
        "student:http://u:hush@h",
        "gguf:http://u:hush@h/a.gguf",
        "endpoint:http://u:hush@h/v1",
        "hush@h",
    ],
)
def test_no_malformed_form_repeats_a_credential(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_teacher(text)
    assert "hush" not in str(caught.value)
    assert "Write student" in str(caught.value)


@given(source=st.sampled_from(["weights", "gguf", "endpoint"]), model=st.text(min_size=1))
def test_name_of_any_teacher_is_read_back(source: str, model: str) -> None:
    if not model.strip() or model != model.strip():
        return
    assert parse_teacher(f"{source}:{model}").model == model


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "org/m"}, "source 'student' is the student itself; for 'org/m' name another source"),
        ({"source": "gguf", "model": "m", "url": "http://h/v1"}, "a url belongs to a teacher of source 'vllm'"),
        ({"source": "gguf", "model": "m", "precision": "nf4"}, "precision is chosen for weights"),
        (
            {"source": "endpoint", "model": "m", "template": "plain"},
            "template 'plain' is of no use to an endpoint, which has its own template; leave it out",
        ),
        ({"task_weights": {"code": 0}}, "the weight of 'code' should be a number above 0"),
        ({"task_weights": {"code": float("inf")}}, "the weight of 'code' should be a number above 0"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TeacherSettings.model_validate(fields)


TOML = """
[[cycle.teachers]]
source = "gguf"
model = "/models/a.gguf"
task_weights = { code = 3.0 }

[[cycle.teachers]]
source = "endpoint"
model = "primary"
hindsight = false
"""


def test_teachers_are_read_from_toml_and_from_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().cycle.teachers == [TeacherSettings()]
    config = tmp_path / "mine.toml"
    config.write_text(TOML, encoding="utf-8")
    monkeypatch.setenv("EVERSWARM_CONFIG", str(config))
    first, second = load_settings().cycle.teachers
    assert (first.name, first.task_weights) == ("gguf:/models/a.gguf", {"code": 3.0})
    assert (second.name, second.hindsight) == ("endpoint:primary", False)
    monkeypatch.setenv("EVERSWARM_CYCLE__TEACHERS", json.dumps([{"source": "weights", "model": "org/m"}]))
    assert [teacher.name for teacher in load_settings().cycle.teachers] == ["weights:org/m"]


@pytest.mark.parametrize(
    ("teachers", "told"),
    [
        ({"source": "student"}, "cycle.teachers: should be a list. Write [[cycle.teachers]], with two brackets"),
        ([], "cycle.teachers: List should have at least 1 item"),
        ([{}, {"source": "gguf"}], "cycle.teachers.1: a teacher of source 'gguf' needs a model"),
        ([{"source": "oracle"}], "cycle.teachers.0.source: Input should be 'student', 'weights', 'gguf', 'vllm' or"),
        ([{"modle": "x"}], "cycle.teachers.0.modle: is not a setting"),
    ],
)
def test_teachers_that_cannot_be_used_are_told_by_their_place(
    teachers: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EVERSWARM_CYCLE__TEACHERS", json.dumps(teachers))
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert told in str(caught.value)
