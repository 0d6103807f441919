"""Child processes that never outlive their parent, even one that was killed with SIGKILL.

The parent keeps the write end of the child's standard input. When the parent dies, however it dies, the
kernel closes that pipe, the child reads end-of-file, and leaves. This works on Linux, macOS and Windows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any


def start_python_child(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> subprocess.Popen[str]:
    """Start this Python with `arguments` (such as `["-m", "everswarm.llm.engine_child"]`).

    `environment` is added to ours. The child must call `leave_with_parent()` first thing.
    """
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        text=True,
        bufsize=1,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # a Ctrl-C in the terminal goes to the parent alone, which then stops us in order
    )


def leave_with_parent() -> None:
    """In the child: leave at once when standard input ends, that is, when the parent is gone."""

    def wait_for_end() -> None:
        while sys.stdin.buffer.raw.read(1):  # type: ignore[attr-defined]
            pass
        os._exit(0)

    threading.Thread(target=wait_for_end, name="leave-with-parent", daemon=True).start()


def stop_child(child: subprocess.Popen[str], *, grace_seconds: float = 5.0) -> int:
    """End `child` politely, then firmly; return its exit code."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdin is not None:
        child.stdin.close()
    return child.returncode
