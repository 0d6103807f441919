"""Runs the programs that convert and quantise, each in a process of its own. Knows nothing of what they make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import no_space

LAST_LINES = 8  # of a failed program's standard error, told to the user
TIMEOUT_SECONDS = 3600


def run_converter(tree: Path, script: str, arguments: Sequence[str], *, what: str, writes_to: Path) -> None:
    """Run llama.cpp's own `script` out of `tree` with the `gguf` library that lies beside it.

    Raises:
        StageFailedError: it failed; has the last lines of what it said.
        NoSpaceError: the disk is full.
    """
    # the published gguf package may be older than the script, so the tree's own comes first
    run_python([str(tree / script), *arguments], python_path=tree / "gguf-py", what=what, writes_to=writes_to)


def run_python(arguments: Sequence[str], *, what: str, writes_to: Path, python_path: Path | None = None) -> None:
    """Run this Python with `arguments`, in one thread and without network.

    Raises:
        StageFailedError: it failed; has the last lines of what it said.
        NoSpaceError: the disk is full.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if python_path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(python_path), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise StageFailedError(f"{what} took over {TIMEOUT_SECONDS} s and was stopped. Try again.") from error
    if done.returncode == 0:
        return
    if "No space left on device" in done.stderr:
        raise no_space(writes_to)
    lines = [line for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
    raise StageFailedError(f"{what} failed with exit code {done.returncode}. It said last: {' | '.join(lines)}")
