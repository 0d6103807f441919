"""The import contracts hold, and each of them stops a deliberate wrong import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `tree/pyproject.toml` over `tree/src`."""
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src"), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source that a test may spoil."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold(tree: Path) -> None:
    result = lint_imports(tree)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "wrong_import", "contract"),
    [
        ("training/curation/wrong.py", "import everswarm.server.feedback", "three rooms, one hallway"),
        ("schemas/wrong.py", "import everswarm.client", "three rooms, one hallway"),
        ("homeless.py", "", "three rooms, one hallway"),
        ("server/auth/wrong.py", "import everswarm.server.cycles", "inside the server"),
        ("server/fleet/wrong.py", "import everswarm.server.cycles", "inside the server"),
        ("training/curation/wrong.py", "import everswarm.training.export", "training stages do not know each other"),
        ("device/wrong.py", "import torch", "tensors stay in training"),
        ("training/wrong.py", "import sqlalchemy", "web framework and SQL stay in the server"),
    ],
)
def test_wrong_import_breaks_its_contract(tree: Path, module: str, wrong_import: str, contract: str) -> None:
    (tree / "src/everswarm" / module).write_text(wrong_import + "\n", encoding="utf-8")

    result = lint_imports(tree)

    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in " ".join(result.stdout.split())
