"""`everswarm.example.toml` shows every setting, by its name and with its default."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from everswarm.settings import Settings, load_settings

EXAMPLE = Path(__file__).parents[1] / "everswarm.example.toml"
OF_THIS_MACHINE = {"home", "models_dir"}  # their defaults are folders of the user
NAMED_BY_USERS = {"roles", "tools"}  # tables of sections
FREE_TABLES = {"swarm.strategies", "cycle.teachers.task_weights"}


def uncommented() -> str:
    """A setting is written `#name = …` or `#[table]`; a `#` and a space begin a comment."""
    return re.sub(r"^#(?=[\[\w])", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def section_of(annotation: Any) -> type[BaseModel] | None:
    candidates = [annotation, *get_args(annotation)]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)


def expected(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name, field.get_default(call_default_factory=True)
        else:
            yield from expected(section, f"{prefix}{name}.")


def written(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if prefix + name in NAMED_BY_USERS:
            for section in inner.values():
                yield from written(section, f"{prefix}{name}.")
        elif isinstance(inner, dict) and prefix + name not in FREE_TABLES:
            yield from written(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_example_as_it_stands_sets_nothing() -> None:
    assert tomllib.loads(EXAMPLE.read_text(encoding="utf-8")) == {}


def test_example_names_every_setting_and_no_other() -> None:
    assert sorted(dict(written(tomllib.loads(uncommented())))) == sorted(dict(expected(Settings)))


def test_example_shows_the_defaults() -> None:
    shown = dict(written(tomllib.loads(uncommented())))
    defaults = {
        name: value
        for name, value in expected(Settings)
        if value not in (None, "", [], {}, PydanticUndefined) and name not in OF_THIS_MACHINE
    }
    assert {name: shown[name] for name in defaults} == defaults


def test_uncommented_example_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "everswarm.toml"
    config.write_text(uncommented(), encoding="utf-8")
    monkeypatch.setenv("EVERSWARM_CONFIG", str(config))
    monkeypatch.chdir(tmp_path)

    settings = load_settings()

    assert settings.endpoints[0].name == "ollama"
    assert settings.endpoints[0].quota is not None
    assert settings.endpoints[0].quota.shared == "account"
    assert settings.cycle.schedule == "0 3 * * 1"
    assert settings.cycle.teachers[0].task_weights == {"mathematics": 2.0}
    assert settings.roles["translator"].endpoint == "ollama"
    assert settings.tools["files"].command[0] == "npx"
