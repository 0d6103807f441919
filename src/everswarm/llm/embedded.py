"""Keeps the embedded llama.cpp running: starts it in a child process, and starts it again when it dies.

Threads, no event loop: the server and the device share it. Knows nothing of chats.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from everswarm.errors import MissingExtraError, UnavailableError
from everswarm.processes import start_python_child, stop_child

FIRST_PAUSE_SECONDS = 0.2  # before the first restart; doubles with each that fails
LONGEST_PAUSE_SECONDS = 10.0
STARTING = "starting"
OPERATIONAL = "operational"


class EmbeddedEngine:
    """One model in one supervised child process."""

    def __init__(
        self,
        model_path: Path,
        *,
        model: str,
        threads: int,
        context_tokens: int,
        parallel: int,
        answer_tokens: int = -1,
        adapter: Path | None = None,
        log_path: Path | None = None,
    ) -> None:
        """Prepare an engine; `start` starts it.

        Args:
            model_path: GGUF file.
            model: its name in answers.
            threads: of computation.
            context_tokens: shared by the parallel slots.
            parallel: requests answered side by side.
            answer_tokens: limit on an answer where the request sets none; -1 for no limit but the context.
            adapter: LoRA GGUF, applied unless a request says `"lora": [{"id": 0, "scale": 0}]`.
            log_path: where llama.cpp's complaints go; nowhere without it.
        """
        self.model = model
        self._log_path = log_path
        self._arguments = ["-m", "everswarm.llm.engine_child", "--model", str(model_path), "--name", model]
        self._arguments += ["--threads", str(threads), "--context", str(context_tokens), "--parallel", str(parallel)]
        self._arguments += ["--answer-tokens", str(answer_tokens)]
        self._arguments += ["--adapter", str(adapter)] if adapter is not None else []
        self._changed = threading.Condition()  # guards the fields below
        self._state = STARTING
        self._address: str | None = None
        self._child: subprocess.Popen[str] | None = None
        self._stopping = False
        self._supervisor: threading.Thread | None = None

    @property
    def state(self) -> str:
        """`starting`, `operational`, or what is wrong."""
        return self._state

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        child = self._child
        return None if child is None else child.pid

    @property
    def base_url(self) -> str:
        """Where it answers now, such as http://127.0.0.1:40123/v1; another port after each restart.

        Raises:
            UnavailableError: it does not answer now.
        """
        address = self._address
        if address is None:
            raise UnavailableError(f"The embedded engine does not answer: {self._state}. Try again in a few seconds.")
        return f"{address}/v1"

    def start(self) -> None:
        """Begin to load the model; return at once.

        Raises:
            MissingExtraError: the engine extra is not installed.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise MissingExtraError("The embedded engine", "engine")
        self._supervisor = threading.Thread(target=self._supervise, name="embedded-engine", daemon=True)
        self._supervisor.start()

    def wait_ready(self, timeout_seconds: float) -> None:
        """Return when the engine answers.

        Raises:
            UnavailableError: it does not within `timeout_seconds`, or was stopped.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._address is not None or self._stopping, timeout_seconds)
            if self._address is None:
                log = f" Its log is {self._log_path}." if self._log_path else ""
                raise UnavailableError(
                    f"The embedded engine did not answer within {timeout_seconds:.0f} s: {self._state}.{log}"
                )

    def stop(self) -> None:
        """End the child and the supervision; safe to call twice."""
        with self._changed:
            self._stopping = True
            self._address, self._state = None, "stopped"
            child = self._child
            self._changed.notify_all()
        if child is not None:
            stop_child(child)
        if self._supervisor is not None:
            self._supervisor.join()

    def _supervise(self) -> None:
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._stopping:
            served_seconds = self._run_once()
            pause_seconds = FIRST_PAUSE_SECONDS if served_seconds > LONGEST_PAUSE_SECONDS else pause_seconds
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _run_once(self) -> float:
        """Run one child until it ends; return for how many seconds it answered."""
        try:
            with self._log() as log, self._changed:
                if self._stopping:
                    return 0.0
                child = start_python_child(self._arguments, stdout=subprocess.PIPE, stderr=log)
                self._child = child
        except OSError as error:  # no disk for the log, no memory for a process: may mend
            self._announce(None, f"starting again, since it could not be started ({error})")
            return 0.0
        address = _read_address(child)
        ready_at = time.monotonic()
        if address is not None:
            self._announce(address, OPERATIONAL)
        code = child.wait()
        if child.stdout is not None:
            child.stdout.close()
        with contextlib.suppress(OSError):
            if child.stdin is not None:
                child.stdin.close()
        self._announce(None, f"starting again, since it ended with code {code}")
        return 0.0 if address is None else time.monotonic() - ready_at

    def _announce(self, address: str | None, state: str) -> None:
        with self._changed:
            if not self._stopping:
                self._address, self._state = address, state
                self._changed.notify_all()

    @contextlib.contextmanager
    def _log(self) -> Iterator[int | IO[str]]:
        if self._log_path is None:
            yield subprocess.DEVNULL
            return
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a", encoding="utf-8") as log:
            yield log


def _read_address(child: subprocess.Popen[str]) -> str | None:
    """Return the address that the child prints; None if it ends before that."""
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(json.loads(line)["address"])
    return None
