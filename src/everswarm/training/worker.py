"""Lease a job, do it in a child process, beat meanwhile, hand in the record; then again.

The worker pulls over HTTP, so it may sit anywhere. It holds no state that matters: killed at any moment, its job goes
back to the queue and the next worker goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from everswarm.client import EverswarmClient
from everswarm.errors import (
    BadRequestError,
    ConflictError,
    EverswarmError,
    ForbiddenError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)
from everswarm.processes import Usage, reap_child, start_python_child
from everswarm.schemas.job import Beat, JobDone, JobFailed, Lease, LeaseRequest, Progress, Spent

log = logging.getLogger(__name__)
IDLE_SECONDS = 1.0  # between two questions for work
TRIES_BETWEEN_STAGES = 3  # with `once`: the server queues the next stage a moment after the last
NOT_OURS = (ConflictError, NotFoundError, UnauthorizedError, ForbiddenError)  # no word of ours counts any more
SHORTEST_BEAT_SECONDS = 0.5  # progress is sent at most this often
LONGEST_ERROR_CHARACTERS = 4000  # of `schemas.job.JobFailed`
KEPT_LOGS = 20  # of failed jobs
EXIT_SECONDS = 10.0  # for a child that has said its last word


@dataclass
class Outcome:
    """What the child said last."""

    result: dict[str, Any] | None = None
    error: str | None = None
    final: bool = False
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0


@dataclass
class Worker:
    """One worker of one server. `home` keeps downloaded artifacts, unfinished work and the logs of failed jobs.

    With `find_server` it asks anew where the server is when that does not answer, or no longer knows the key.
    """

    client: EverswarmClient
    worker_id: str
    home: Path
    on_event: Callable[[str], None] = log.info
    stopping: threading.Event = field(default_factory=threading.Event)
    find_server: Callable[[], EverswarmClient] | None = None

    def run(self, *, once: bool = False) -> None:
        """Work until `stopping` is set; with `once`, until there is nothing to do."""
        self.on_event(f"worker {self.worker_id} asks {self.client.base_url} for work")
        patience = 0
        while not self.stopping.is_set():
            try:
                lease = self.client.lease(LeaseRequest(worker_id=self.worker_id))
            except EverswarmError as error:
                if self._found_again(error):
                    continue
                if once or isinstance(error, UnauthorizedError | ForbiddenError):  # waiting does not mend a key
                    raise
                log.warning("%s", error)  # the server restarts: it will be back
                lease = None
            if lease is not None:
                self._do(lease)
                patience = TRIES_BETWEEN_STAGES
            elif once and not patience:
                return
            else:
                patience = max(patience - 1, 0)
                self.stopping.wait(IDLE_SECONDS)

    def _do(self, lease: Lease) -> None:
        job = lease.job
        self.on_event(f"{job.stage} of cycle {job.cycle_id}, try {job.attempt}")
        folder = self.home / "jobs" / self.worker_id / job.id
        shutil.rmtree(folder, ignore_errors=True)  # what a killed try left half-written
        folder.mkdir(parents=True)
        started = time.monotonic()
        (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        try:
            outcome, usage = self._run_child(lease, folder)
        except (ConflictError, NotFoundError) as error:
            self.on_event(f"dropped {job.id}: {error}")
            shutil.rmtree(folder, ignore_errors=True)
            return
        if self.stopping.is_set() and outcome.result is None:
            return  # we were asked to stop: the lease runs out, or we ask again
        spent = Spent(
            wall_seconds=time.monotonic() - started,
            cpu_seconds=usage.cpu_seconds,
            peak_memory_bytes=usage.peak_memory_bytes,
            uploaded_bytes=outcome.uploaded_bytes,
            downloaded_bytes=outcome.downloaded_bytes,
        )
        if outcome.error is not None:
            outcome.error = self._with_log(outcome.error, job.id, folder)
        self._hand_in(lease, outcome, spent, folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _run_child(self, lease: Lease, folder: Path) -> tuple[Outcome, Usage]:
        """Run the stage's process; beat while it lives.

        Raises:
            ConflictError: the lease is lost; the process has been ended.
            NotFoundError: the server does not know the job any more; the same.
        """
        environment = {
            "EVERSWARM_SERVER": self.client.base_url,
            "EVERSWARM_KEY": self.client.key or "",
            "EVERSWARM_STAGE_FOLDER": str(folder),
            "EVERSWARM_STAGE_CACHE": str(self.home / "cache"),
        }
        with (folder / "stage.log").open("w", encoding="utf-8") as stderr:
            child = start_python_child(
                ["-m", "everswarm.training.stage_child", str(folder / "job.json")],
                environment=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
            lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
            threading.Thread(target=_read_lines, args=(child, lines), daemon=True).start()
            patience_seconds = 0.0
            try:
                outcome = self._listen(lease, lines)
                if not self.stopping.is_set():
                    patience_seconds = EXIT_SECONDS
            finally:
                usage = reap_child(child, patience_seconds=patience_seconds)
        if outcome.result is None and outcome.error is None:
            outcome.error = (
                f"The process of stage {lease.job.stage} ended with code {child.returncode} without a word. "
                f"Its last lines: {_tail(folder / 'stage.log')}"
            )
        return outcome, usage

    def _listen(self, lease: Lease, lines: queue.Queue[dict[str, Any] | None]) -> Outcome:
        outcome = Outcome()
        progress: Progress | None = None  # this and the checkpoint wait here until the server has them
        checkpoint: dict[str, Any] | None = None
        last_beat = time.monotonic()
        while not self.stopping.is_set():
            try:
                line = lines.get(timeout=SHORTEST_BEAT_SECONDS)
            except queue.Empty:
                line = {}
            if line is None:
                break
            outcome = _merge(outcome, line)
            if "progress" in line:
                progress = Progress.model_validate(line["progress"])
            checkpoint = line.get("checkpoint") or checkpoint
            age = time.monotonic() - last_beat
            waiting = (progress or checkpoint) and age > SHORTEST_BEAT_SECONDS
            if "checkpoint" in line or waiting or age > lease.beat_every_seconds:
                if self._beat(lease, Beat(token=lease.token, progress=progress, checkpoint=checkpoint)):
                    progress, checkpoint = None, None
                last_beat = time.monotonic()
        return outcome

    def _beat(self, lease: Lease, beat: Beat) -> bool:
        """Say that we are still at it; return whether the server heard it."""
        try:
            self.client.beat(lease.job.id, beat)
        except (ConflictError, NotFoundError, ForbiddenError):
            raise
        except EverswarmError as error:  # the lease outlives a restart of the server
            if not self._found_again(error) and isinstance(error, UnauthorizedError):
                raise
            log.warning("beat not delivered: %s", error)
            return False
        return True

    def _hand_in(self, lease: Lease, outcome: Outcome, spent: Spent, folder: Path) -> None:
        """Deliver the record, however long the server is away; the lease decides whether it still counts."""
        while True:
            try:
                if outcome.result is not None:
                    self.client.job_done(lease.job.id, JobDone(token=lease.token, result=outcome.result, spent=spent))
                    self.on_event(f"{lease.job.stage} done in {spent.wall_seconds:.0f} s")
                else:
                    text = (outcome.error or "unknown")[:LONGEST_ERROR_CHARACTERS]
                    self.client.job_failed(lease.job.id, JobFailed(token=lease.token, error=text, final=outcome.final))
                    self.on_event(f"{lease.job.stage} failed: {text}")
                return
            except EverswarmError as error:
                if self._found_again(error) or isinstance(error, UnavailableError):
                    log.warning("%s of %s not delivered yet: %s", lease.job.stage, lease.job.cycle_id, error)
                    if self.stopping.wait(IDLE_SECONDS):
                        return
                    continue
                self.on_event(f"the server did not take {lease.job.id}: {error}")
                if outcome.result is None or isinstance(error, NOT_OURS):
                    return
                refusal = self._with_log(f"The server did not take the result: {error}", lease.job.id, folder)
                outcome = Outcome(error=refusal, final=isinstance(error, BadRequestError | TooLargeError))

    def _found_again(self, error: EverswarmError) -> bool:
        """After `error` look where the server is now; say whether that is another address or key."""
        if self.find_server is None or not isinstance(error, UnavailableError | UnauthorizedError):
            return False
        try:
            found = self.find_server()
        except EverswarmError:  # it has not announced itself yet
            return False
        if (found.base_url, found.key) == (self.client.base_url, self.client.key):
            found.close()
            return False
        self.client.close()
        self.client = found
        self.on_event(f"the server is at {found.base_url} now")
        return True

    def _with_log(self, error: str, job_id: str, folder: Path) -> str:
        """Keep the log of a failed job, if it says anything; return `error` with its place."""
        written, kept = folder / "stage.log", self.home / "failed" / f"{job_id}.log"
        try:
            if not written.exists() or written.stat().st_size == 0:
                return error
            kept.parent.mkdir(parents=True, exist_ok=True)
            written.replace(kept)
            logs = sorted(kept.parent.glob("*.log"), key=lambda path: path.stat().st_mtime)
            for path in logs[:-KEPT_LOGS]:
                path.unlink(missing_ok=True)
        except OSError as problem:
            log.warning("the log of %s is not kept: %s", job_id, problem)
            return error
        place = f" The log is {kept}"
        return error[: LONGEST_ERROR_CHARACTERS - len(place)] + place


def _read_lines(child: subprocess.Popen[str], lines: queue.Queue[dict[str, Any] | None]) -> None:
    assert child.stdout is not None
    with child.stdout as output:
        for text in output:
            try:
                lines.put(json.loads(text))
            except ValueError:
                log.warning("the stage printed what is not JSON: %s", text.rstrip()[:200])
    lines.put(None)


def _merge(outcome: Outcome, line: dict[str, Any]) -> Outcome:
    if "result" in line:
        return Outcome(
            result=line["result"],
            uploaded_bytes=line.get("uploaded_bytes", 0),
            downloaded_bytes=line.get("downloaded_bytes", 0),
        )
    if "error" in line:
        return Outcome(error=line["error"], final=bool(line.get("final")))
    return outcome


def _tail(path: Path, *, lines: int = 5) -> str:
    text = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(text[-lines:]) or "(none)"


def local_worker_id() -> str:
    """Return the id of the worker that `serve` starts here; the same after a restart, so its lease is given back."""
    return f"local-{os.uname().nodename}" if hasattr(os, "uname") else "local"
