"""Processes on a core of their own, and what they cost by the kernel's accounting. Linux only."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent


def why_not() -> str | None:
    """Return why the benchmark cannot run on this machine; None where it can."""
    if sys.platform != "linux":
        return "the gateway benchmark reads /proc and its load generator uses epoll: it needs Linux"
    if _compiler() is None:
        return "the mock endpoint and the load generator are C: install a C compiler (Debian: gcc libc6-dev), or set CC"
    if len(os.sched_getaffinity(0)) < 2:
        return "the gateway needs a core of its own beside the load generator's: this process may use only one"
    return None


def compile_sources(folder: Path) -> None:
    """Build `mock` and `load` into `folder`.

    Raises:
        SystemExit: the compiler refuses; its words are in the message.
    """
    for name in ("mock", "load"):
        command = [str(_compiler()), "-O2", "-o", str(folder / name), str(SOURCES / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}.c could not be compiled with {command[0]}: {done.stderr[-2000:]}")


def cores() -> tuple[int, int]:
    """Return the core of the mock and the load generator, and that of the gateway."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return first, second


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes that are started in this block run on `core` only, and so do their threads and children."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    command: Sequence[str], *, core: int, folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` on `core` in `folder` while the block lasts."""
    with log.open("wb") as output:
        with pinned(core):
            child = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield child
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # what it left behind
            child.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its descendants, in seconds.

    It is the run time that the scheduler counts in `/proc/PID/task/*/schedstat`, read from the process's own clock,
    which also has that of threads that ended.
    """
    return sum(time.clock_gettime_ns(_cpu_clock(member)) for member in _tree(pid)) / 1e9


def memory_mb(pid: int) -> float:
    """Return the proportional memory (Pss) of a process and its descendants, in MB."""
    kibibytes = 0
    for member in _tree(pid):
        for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kibibytes += int(line.split()[1])
    return kibibytes * 1024 / 1e6


def free_port() -> int:
    """Return a port of loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _compiler() -> str | None:
    named = os.environ.get("CC")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _cpu_clock(pid: int) -> int:
    return (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it: the scheduler's clock of that process


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    found = [pid]
    for member in found:  # grows while we walk it
        found.extend(child for child, parent in parents.items() if parent == member)
    return found
