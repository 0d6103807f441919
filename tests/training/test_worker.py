"""The worker against our real server; its stage is a script that speaks the protocol of `stage_child`."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.fakes.local_server import CYCLE, LocalServer
from tests.fakes.stage_results import result_of

from everswarm.client import EverswarmClient
from everswarm.errors import ForbiddenError, UnauthorizedError, UnavailableError
from everswarm.processes import start_python_child
from everswarm.schemas.job import JobDone, Lease, LeaseRequest, Spent, Stage
from everswarm.schemas.server import KeyCreate, Scope
from everswarm.server.cycles import repository
from everswarm.settings import WorkerSettings
from everswarm.training import worker as worker_module
from everswarm.training.worker import Worker

PATIENCE_SECONDS = 20.0
PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from everswarm.processes import leave_with_parent
leave_with_parent()
def emit(**line): print(json.dumps(line), flush=True)
folder = Path(os.environ["EVERSWARM_STAGE_FOLDER"])
(folder.parents[2] / "pid").write_text(str(os.getpid()))
"""
DONE = f"emit(result=json.loads({json.dumps(result_of(Stage.CURATE))!r}), uploaded_bytes=7, downloaded_bytes=5)"

PlayStage = Callable[[str], None]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    made = LocalServer(tmp_path / "server", worker=WorkerSettings(lease_seconds=60, beat_seconds=1, attempts=2))
    made.start()
    yield made
    made.close()


@pytest.fixture
def worker(server: LocalServer, tmp_path: Path) -> Iterator[Worker]:
    with server.client() as client:
        yield Worker(client=client, worker_id="w1", home=tmp_path / "worker", on_event=lambda _text: None)


@pytest.fixture
def play_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlayStage:
    """Return how to say what the stage's process does, in Python."""
    script = tmp_path / "stage.py"

    def start(arguments: Sequence[str], **options: Any) -> Any:
        assert arguments[:2] == ["-m", "everswarm.training.stage_child"]
        return start_python_child([str(script), arguments[-1]], **options)

    monkeypatch.setattr(worker_module, "start_python_child", start)
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.05)
    return lambda code: script.write_text(PREAMBLE + code, encoding="utf-8") and None


def until(condition: Callable[[], object], *, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def stage_pid(worker: Worker) -> int | None:
    path = worker.home / "pid"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return int(text) if text else None


def alive(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid)


def take_over(server: LocalServer, client: EverswarmClient, job_id: str) -> Lease:
    """Let the lease expire and give the job to another worker; again where a beat came between."""
    while True:
        with server.database.transaction() as connection:
            repository.update_stage(connection, job_id, leased_until=datetime.now(UTC) - timedelta(seconds=1))
        if lease := client.lease(LeaseRequest(worker_id="w2")):
            return lease


class Running:
    """A worker that works in a thread."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.thread = threading.Thread(target=worker.run, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.worker.stopping.set()
        if self.thread.ident is not None:
            self.thread.join(PATIENCE_SECONDS)
        assert not self.thread.is_alive()


@pytest.fixture
def running(worker: Worker) -> Iterator[Running]:
    made = Running(worker)
    yield made
    made.stop()


def test_record_and_its_cost_are_handed_in(server: LocalServer, worker: Worker, play_stage: PlayStage) -> None:
    job_id = server.queue()
    play_stage(f"print('not JSON: a library speaks'); sum(n * n for n in range(1_000_000))\n{DONE}")

    worker.run(once=True)

    stage = server.stage(job_id)
    assert (stage.state, stage.error) == ("done", None)
    assert stage.result["data"]["sha256"] == "b" * 64
    spent = Spent.model_validate(stage.spent)
    assert spent.cpu_seconds > 0
    assert spent.wall_seconds > 0
    assert (spent.uploaded_bytes, spent.downloaded_bytes) == (7, 5)
    assert list((worker.home / "jobs" / "w1").iterdir()) == []


def test_stage_reads_its_job_and_where_the_server_is(
    server: LocalServer, worker: Worker, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage(
        "job = json.loads(Path(sys.argv[1]).read_text())\n"
        "found = {name: os.environ[name] for name in ('EVERSWARM_SERVER', 'EVERSWARM_KEY')}\n"
        "emit(error=json.dumps([job['id'], job['parameters']['student'], found]), final=True)"
    )

    worker.run(once=True)

    expected = [job_id, "tiny", {"EVERSWARM_SERVER": server.url, "EVERSWARM_KEY": server.key}]
    assert json.loads(server.stage(job_id).error) == expected


def test_progress_and_checkpoint_reach_the_server_while_the_stage_runs(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage("emit(progress={'done': 1, 'total': 2, 'note': 'half'}); emit(checkpoint={'step': 3}); time.sleep(60)")
    running.start()
    until(lambda: server.stage(job_id).checkpoint, what="the checkpoint")
    assert server.stage(job_id).checkpoint == {"step": 3}
    assert server.stage(job_id).progress == {"done": 1, "total": 2, "note": "half"}


def test_checkpoint_made_while_the_server_was_away_is_sent_when_it_is_back(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage, tmp_path: Path
) -> None:
    job_id = server.queue()
    go = tmp_path / "go"
    play_stage(
        f"while not Path({str(go)!r}).exists(): time.sleep(0.02)\n"
        "emit(checkpoint={'step': 9}); time.sleep(0.3); (folder.parents[2] / 'told').touch(); time.sleep(60)"
    )
    running.start()
    until(lambda: stage_pid(worker), what="the stage")
    server.stop()
    go.touch()
    until((worker.home / "told").exists, what="the checkpoint was told")
    assert server.stage(job_id).checkpoint is None
    server.start()
    until(lambda: server.stage(job_id).checkpoint == {"step": 9}, what="the checkpoint")


def test_stage_that_dies_without_a_word_fails_with_its_last_lines(
    server: LocalServer, worker: Worker, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage(
        "for number in range(9): print(f'line {number}', file=sys.stderr)\n"
        "print('out of memory', file=sys.stderr, flush=True); os._exit(9)"
    )

    worker.run(once=True)

    stage = server.stage(job_id)
    assert (stage.state, stage.attempts) == ("failed", 2)  # tried again, as it might have been the machine
    assert stage.error == (
        "The process of stage curate ended with code 9 without a word. "
        "Its last lines: line 5 | line 6 | line 7 | line 8 | out of memory "
        f"The log is {worker.home / 'failed' / job_id}.log"
    )
    assert (worker.home / "failed" / f"{job_id}.log").read_text(encoding="utf-8").startswith("line 0\nline 1\n")


def test_newest_logs_of_failed_jobs_are_kept(
    server: LocalServer, worker: Worker, play_stage: PlayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "KEPT_LOGS", 2)
    failed = worker.home / "failed"
    failed.mkdir(parents=True)
    for age in (1, 2, 3):
        (failed / f"old-{age}.log").touch()
        os.utime(failed / f"old-{age}.log", (1_000_000 - age, 1_000_000 - age))
    job_id = server.queue()
    play_stage("print('x' * 99, file=sys.stderr); emit(error='e' * 9000, final=True)")

    worker.run(once=True)

    assert {path.name for path in failed.iterdir()} == {f"{job_id}.log", "old-1.log"}
    error = server.stage(job_id).error
    assert len(error) <= 4000
    assert error.endswith(f"e The log is {failed / job_id}.log")


def test_record_that_the_server_refuses_fails_the_stage_with_the_reason(
    server: LocalServer, worker: Worker, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage("emit(result={'filler': 'x' * 3_000_000})")  # more than a request may have

    worker.run(once=True)

    stage = server.stage(job_id)
    assert (stage.state, stage.attempts) == ("failed", 1)
    assert stage.error.startswith("The server did not take the result: ")


@pytest.mark.parametrize("lost", ["address", "key"])
def test_worker_finds_the_server_again_after_its_address_or_key_changed(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage, lost: str
) -> None:
    job_id = server.queue()
    play_stage(DONE)
    place = ("http://127.0.0.1:9", server.key) if lost == "address" else (server.url, "esw_old")
    worker.client, worker.find_server = EverswarmClient(*place), server.client
    running.start()
    until(lambda: server.stage(job_id).state == "done", what="the record")
    running.stop()
    worker.client.close()


@pytest.mark.parametrize(("final", "attempts"), [(True, 1), (False, 2)])
def test_error_of_the_stage_is_passed_on_with_its_finality(
    server: LocalServer, worker: Worker, play_stage: PlayStage, final: bool, attempts: int
) -> None:
    job_id = server.queue()
    play_stage(f"emit(error='too little feedback', final={final}); sys.exit(1)")

    worker.run(once=True)

    stage = server.stage(job_id)
    assert (stage.state, stage.error, stage.attempts) == ("failed", "too little feedback", attempts)


def test_lost_lease_ends_the_stage_and_its_words_are_not_sent(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage("time.sleep(60)")
    running.start()
    until(lambda: stage_pid(worker), what="the stage")
    pid = stage_pid(worker)
    with server.database.transaction() as connection:
        repository.update_cycle(connection, CYCLE, state="cancelled")

    until(lambda: not alive(pid), what="the end of the stage")

    assert running.thread.is_alive()  # and asks for other work
    running.stop()
    assert (server.stage(job_id).result, server.stage(job_id).attempts) == (None, 1)
    assert list((worker.home / "jobs" / "w1").iterdir()) == []


def test_lease_that_another_worker_holds_by_now_is_dropped(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage("time.sleep(60)")
    running.start()
    until(lambda: stage_pid(worker), what="the stage")
    pid = stage_pid(worker)
    with server.client() as client:
        other = take_over(server, client, job_id)
        until(lambda: not alive(pid), what="the end of the stage")
        client.job_done(job_id, JobDone(token=other.token, result=result_of(Stage.CURATE), spent=Spent()))
    running.stop()
    assert server.stage(job_id).state == "done"


def test_record_is_delivered_when_the_server_is_back(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage, tmp_path: Path
) -> None:
    job_id = server.queue()
    go = tmp_path / "go"
    play_stage(f"while not Path({str(go)!r}).exists(): time.sleep(0.02)\n{DONE}")
    running.start()
    until(lambda: stage_pid(worker), what="the stage")
    pid = stage_pid(worker)
    server.stop()
    go.touch()
    until(lambda: not alive(pid), what="the end of the stage")
    assert server.stage(job_id).state == "running"
    server.start()
    until(lambda: server.stage(job_id).state == "done", what="the record")


def test_asked_to_stop_the_worker_ends_its_stage_and_leaves_the_job_to_the_next(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage("time.sleep(60)")
    running.start()
    until(lambda: stage_pid(worker), what="the stage")
    running.stop()
    assert not alive(stage_pid(worker))
    assert server.stage(job_id).state == "running"  # until the lease ends, or a worker of this name asks again

    play_stage(DONE)
    worker.stopping.clear()
    worker.run(once=True)
    assert (server.stage(job_id).state, server.stage(job_id).attempts) == ("done", 2)


def test_worker_waits_for_a_server_that_is_not_there_yet(
    server: LocalServer, worker: Worker, running: Running, play_stage: PlayStage
) -> None:
    job_id = server.queue()
    play_stage(DONE)
    server.stop()
    with pytest.raises(UnavailableError, match="does not answer"):
        worker.run(once=True)
    running.start()
    server.start()
    until(lambda: server.stage(job_id).state == "done", what="the record")


def test_key_that_is_wrong_or_lacks_the_scope_ends_the_worker(server: LocalServer, worker: Worker) -> None:
    with server.client() as admin:
        key = admin.create_key(KeyCreate(scope=Scope.USER, label="a person")).key
    with EverswarmClient(server.url, key) as worker.client, pytest.raises(ForbiddenError):
        worker.run()
    with EverswarmClient(server.url, "esw_nobody") as worker.client, pytest.raises(UnauthorizedError):
        worker.run()


def test_real_stage_process_says_why_it_cannot_go_on(server: LocalServer, worker: Worker) -> None:
    job_id = server.queue()  # its inputs hold no snapshot

    worker.run(once=True)

    stage = server.stage(job_id)
    assert stage.state == "failed"
    assert "KeyError" in stage.error
