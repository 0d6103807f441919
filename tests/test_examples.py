"""The examples run as they stand, as a reader would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES = ["judge", "curate", "label", "distill", "export", "evaluate", "decide", "release", "device"]


def start(example: str, *, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_full_loop_prints_one_line_a_stage_and_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = start("full_loop.py", folder=tmp_path)

    assert [line.split()[0] for line in lines] == STAGES
    said = {line.split()[0]: line for line in lines}
    assert "14 no consent to training" in said["curate"]
    assert "Released: " in said["decide"]
    assert "matches its release" in said["device"]
    assert all("fake" in said[stage] for stage in ("export", "evaluate", "device"))
    assert list(tmp_path.iterdir()) == []
