"""Child processes that never outlive their parent, even one that was killed with SIGKILL.

The parent keeps the write end of the child's standard input. When the parent dies, however it dies, the
kernel closes that pipe, the child reads end-of-file, and leaves. This works on Linux, macOS and Windows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple


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
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(0)

    threading.Thread(target=wait_for_end, name="leave-with-parent", daemon=True).start()


class Usage(NamedTuple):
    """What a child and the children that it waited for have cost, by the kernel's accounting."""

    cpu_seconds: float
    peak_memory_bytes: int


def stop_child(child: subprocess.Popen[str], *, grace_seconds: float = 5.0) -> int:
    """End `child` politely, then firmly; return its exit code."""
    reap_child(child, patience_seconds=0.0, grace_seconds=grace_seconds)
    return child.returncode


def reap_child(child: subprocess.Popen[str], *, patience_seconds: float, grace_seconds: float = 5.0) -> Usage:
    """Wait for `child` to end by itself; return what it cost (zeros on Windows).

    When patience is over it is asked to end, and after `grace_seconds` more it is killed.
    """
    usage = _wait(child, patience_seconds)
    for end, seconds in ((child.terminate, grace_seconds), (child.kill, 5.0)):
        if child.returncode is None:
            end()
            usage = _wait(child, seconds)
    if child.stdin is not None:
        child.stdin.close()
    return usage


def _wait(child: subprocess.Popen[str], timeout_seconds: float) -> Usage:
    deadline = time.monotonic() + timeout_seconds
    while child.returncode is None:
        if not hasattr(os, "wait4"):
            child.poll()
        else:
            try:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            except ChildProcessError:  # another thread asked first
                child.poll()
                break
            if pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                peak_unit = 1 if sys.platform == "darwin" else 1024
                return Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * peak_unit)
        if time.monotonic() >= deadline:
            break
        time.sleep(0.01)
    return Usage(0.0, 0)
