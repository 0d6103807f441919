"""Children with real processes: they leave with their parent, are counted, and can be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from everswarm.processes import reap_child, start_python_child, stop_child

PATIENCE_SECONDS = 20.0
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def start(code: str) -> subprocess.Popen[str]:
    return start_python_child(["-c", textwrap.dedent(code)], stdout=subprocess.PIPE)


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def gone(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not known on Windows")
def test_child_leaves_when_its_parent_is_killed() -> None:
    child_code = "import time; from everswarm.processes import leave_with_parent; leave_with_parent(); time.sleep(60)"
    parent = start(
        f"""
        import time
        from everswarm.processes import start_python_child
        print(start_python_child(["-c", {child_code!r}]).pid, flush=True)
        time.sleep(60)
        """
    )
    child_pid = int(said(parent))
    assert psutil.pid_exists(child_pid)

    parent.send_signal(signal.SIGKILL)
    reap_child(parent, patience_seconds=PATIENCE_SECONDS)

    assert gone(child_pid)


def test_child_stays_while_its_parent_lives() -> None:
    child = start(
        "import sys; from everswarm.processes import leave_with_parent; leave_with_parent(); print('up', flush=True)\n"
        "import time; time.sleep(60)"
    )
    assert said(child) == "up"
    assert child.poll() is None
    assert child.stdin is not None
    child.stdin.close()  # all that the death of a parent does to its child
    reap_child(child, patience_seconds=PATIENCE_SECONDS)
    assert child.returncode == 0


def test_child_gets_our_environment_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    code = "import os; print(os.environ['OURS'] + os.environ['ADDED'])"
    child = start_python_child(["-c", code], environment={"ADDED": "2"}, stdout=subprocess.PIPE)
    assert said(child) == "12"
    reap_child(child, patience_seconds=PATIENCE_SECONDS)


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not account for children")
def test_reaped_child_gives_its_cost_with_that_of_its_own_children() -> None:
    burn = "sum(number * number for number in range(2_000_000)); held = bytearray(50_000_000)"
    alone = start(burn)
    assert reap_child(alone, patience_seconds=PATIENCE_SECONDS).cpu_seconds > 0
    with_child = start(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)")
    usage = reap_child(with_child, patience_seconds=PATIENCE_SECONDS)
    assert with_child.returncode == 0
    assert usage.cpu_seconds > 0
    assert usage.peak_memory_bytes > 50_000_000


def test_child_that_has_ended_already_keeps_its_exit_code() -> None:
    child = start("import sys; sys.exit(3)")
    child.wait(PATIENCE_SECONDS)
    assert reap_child(child, patience_seconds=0.0).cpu_seconds == 0.0  # its cost is lost by then
    assert stop_child(child) == 3


def test_child_outstaying_our_patience_is_ended() -> None:
    child = start("import time; print('up', flush=True); time.sleep(60)")
    assert said(child) == "up"
    reap_child(child, patience_seconds=0.0)
    assert child.returncode not in {None, 0}


def test_stubborn_child_is_killed() -> None:
    child = start(STUBBORN)
    assert said(child) == "up"
    code = stop_child(child, grace_seconds=0.1)
    assert code not in {None, 0}
    if sys.platform != "win32":
        assert code == -signal.SIGKILL
