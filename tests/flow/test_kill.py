"""The whole loop with the real small model, once in peace and once with `kill -9`: both end with the same records."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from everswarm.cli.local import connect
from everswarm.client import EverswarmClient
from everswarm.errors import EverswarmError
from everswarm.schemas.job import Cycle, Stage, StageStatus
from everswarm.settings import load_settings

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_SECONDS = 400.0
KILLS = (  # stage, how far it must be, who is killed
    (Stage.CURATE, 0, "worker"),
    (Stage.LABEL, 32, "server"),  # one shard is stored
    (Stage.DISTILL, 11, "worker"),  # a checkpoint is stored
    (Stage.EXPORT, 0, "server"),
    (Stage.EVALUATE, 1, "worker"),
)
NOISE_BITS_PER_BYTE = 0.002  # a resumed run repeats the same arithmetic; the rest is rounding


class Server:
    """`everswarm serve` as a process of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> EverswarmClient:
        (self.home / "server.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "everswarm.cli.main", "serve", "--port", "0", "--home", str(self.home)],
            env={**os.environ, "EVERSWARM_ENGINE__ENABLED": "false", "OMP_NUM_THREADS": "1"},
            stdout=(self.home / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
        )
        return until(self._client, "the server to answer")

    def _client(self) -> EverswarmClient | None:
        try:
            client = connect(load_settings(home=self.home))
            return client if client.health().cycles == "ready" else None
        except EverswarmError:
            return None

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(30) == 0


def until(found: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_SECONDS} s for {what}")


def write_feedback(path: Path) -> None:
    """84 corrected answers of 21 people: about 67 examples to train on, so three shards and 17 steps."""
    words = ["red", "blue", "green", "old", "new", "big", "small"]
    lines = [
        {
            "id": f"interaction-{number:03}",
            "device_id": f"person-{number % 21:02}",
            "timestamp": f"2026-11-01T12:{number % 60:02}:00Z",
            "messages": [{"role": "user", "content": f"Say {words[number % 7]} and the number {number}."}],
            "response": "I do not know.",
            "model": "test",
            "rating": 1,
            "correction": f"{words[number % 7].upper()}: {number}.",
            "consent": True,
        }
        for number in range(84)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")


def new_home(folder: Path) -> Server:
    folder.mkdir()
    write_feedback(folder / "feedback.jsonl")
    command = ["-m", "everswarm.cli.main", "feedback", "import", str(folder / "feedback.jsonl"), "--home", str(folder)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return Server(folder)


def status(client: EverswarmClient, cycle_id: str, stage: Stage) -> StageStatus:
    return next(item for item in client.cycle(cycle_id).stages if item.stage == stage)


def is_under_way(client: EverswarmClient, cycle_id: str, stage: Stage, done: int) -> bool:
    found = status(client, cycle_id, stage)
    assert found.state != "done", f"{stage} ended before it could be killed"
    return found.state == "running" and (done == 0 or (found.progress is not None and found.progress.done >= done))


def ended(client: EverswarmClient, cycle_id: str) -> Cycle:
    def found() -> Cycle | None:
        cycle = client.cycle(cycle_id)
        return cycle if cycle.state != "running" else None

    return until(found, "the cycle to end")


def worker_pid(server: Server) -> int:
    """The worker is the server's child whose command line says so."""
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task")
    pids = {pid for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
    for pid in pids:
        if b"--local" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError("no worker")


def result_of(cycle: Cycle, stage: Stage) -> dict[str, Any]:
    found = next(item for item in cycle.stages if item.stage == stage).result
    assert found is not None, cycle.reason
    return found


def scores(cycle: Cycle) -> dict[tuple[str, str, str], float]:
    return {
        (score["suite"], score["weights"], score["subject"]): score["value"]
        for score in result_of(cycle, Stage.EVALUATE)["scores"]
        if score["metric"] == "bits_per_byte"
    }


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker through /proc")
def test_kill_9_of_server_and_worker_changes_nothing_but_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERSWARM_TEXT_KEY", base64.b64encode(bytes(32)).decode())  # people have the same pseudonyms
    wish = {"evaluation_answers": 0}
    peace = new_home(tmp_path / "peace")
    client = peace.start()
    expected = ended(client, client.start_cycle(wish).id)
    peace.stop()
    assert expected.state in {"released", "held"}, expected.reason

    war = new_home(tmp_path / "war")
    client = war.start()
    cycle_id = client.start_cycle(wish).id
    for stage, done, victim in KILLS:
        until(partial(is_under_way, client, cycle_id, stage, done), f"{stage} to be under way")
        if victim == "server":
            war.kill()  # its children, the worker among them, leave with it
            client = war.start()
        else:
            os.kill(worker_pid(war), signal.SIGKILL)
    found = ended(client, cycle_id)
    war.stop()

    assert found.state == expected.state, found.reason
    assert [status_of(found, stage).attempts for stage, _done, _victim in KILLS] == [2] * len(KILLS)
    for stage in (Stage.SNAPSHOT, Stage.CURATE):
        assert result_of(found, stage)["data"]["sha256"] == result_of(expected, stage)["data"]["sha256"]
    assert result_of(found, Stage.LABEL)["digest"] == result_of(expected, Stage.LABEL)["digest"]
    for key, value in scores(expected).items():
        assert scores(found)[key] == pytest.approx(value, abs=NOISE_BITS_PER_BYTE), key


def status_of(cycle: Cycle, stage: Stage) -> StageStatus:
    return next(item for item in cycle.stages if item.stage == stage)
