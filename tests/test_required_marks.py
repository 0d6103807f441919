"""`EVERSWARM_REQUIRE` makes a skip a failure, so that CI cannot pass by leaving tests out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import pytest

@pytest.mark.browser
def test_that_needs_chromium():
    pytest.skip("no Chromium here")

def test_that_needs_data():
    pytest.skip("no data here")
"""


@pytest.fixture
def run_tests(tmp_path: Path):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_skips.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser: drives Chromium\n", encoding="utf-8")

    def run(required: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(tmp_path)]
        environment = {**os.environ, "EVERSWARM_REQUIRE": required}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_a_skip_stays_a_skip_where_nothing_is_required(run_tests) -> None:
    found = run_tests("")
    assert found.returncode == 0
    assert "2 skipped" in found.stdout


def test_a_skip_of_a_required_mark_fails_with_its_reason(run_tests) -> None:
    found = run_tests("browser")
    assert found.returncode == 1
    assert "1 failed, 1 skipped" in found.stdout
    assert "no Chromium here; EVERSWARM_REQUIRE=browser allows no such skip" in found.stdout


def test_a_misspelt_mark_is_refused(run_tests) -> None:
    found = run_tests("browsers")
    assert found.returncode == 4
    assert "EVERSWARM_REQUIRE names ['browsers']" in found.stderr
