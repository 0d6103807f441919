"""Runs the programs that convert and quantise, each in a process of its own. Knows nothing of what they make."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import no_space
from everswarm.processes import start_python_child, stop_child

LAST_LINES = 8  # of a failed program's standard error, told to the user
TIMEOUT_SECONDS = 3600
RUN_AND_LEAVE_WITH_PARENT = """
import os, runpy, sys
from everswarm.processes import leave_with_parent

leave_with_parent()
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


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
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if python_path:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(python_path), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        child = start_python_child(
            ["-c", RUN_AND_LEAVE_WITH_PARENT, *arguments],
            environment=environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            child.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise StageFailedError(f"{what} took over {TIMEOUT_SECONDS} s and was stopped. Try again.") from error
        finally:
            stop_child(child)
        stderr.seek(0)
        said = stderr.read()
    if child.returncode == 0:
        return
    if "No space left on device" in said:
        raise no_space(writes_to)
    lines = [line for line in said.splitlines() if line.strip()][-LAST_LINES:]
    raise StageFailedError(f"{what} failed with exit code {child.returncode}. It said last: {' | '.join(lines)}")
