"""How to call the doctor."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.fakes.upstream import FakeUpstream

from everswarm.cli import main as cli


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    def endpoint(self, name: str) -> dict[str, Any]:
        return next(row for row in self.data["endpoints"] if row["name"] == name)

    def check(self, name: str) -> dict[str, Any]:
        return next(row for row in self.data["checks"] if row["name"] == name)


Doctor = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path) -> Doctor:
    """Return how to call the doctor for a table; any port will do."""
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("EVERSWARM_PORT", "0")
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def call(*endpoints: dict[str, Any], options: tuple[str, ...] = ("--json",)) -> Result:
        if endpoints:
            monkeypatch.setenv("EVERSWARM_ENDPOINTS", json.dumps(endpoints))
        monkeypatch.setattr(sys, "argv", ["everswarm", "doctor", "--home", str(home), *options])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, out, err)

    return call


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(models=["org/model"]) as running:
        yield running
