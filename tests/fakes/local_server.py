"""Our real server on loopback in a thread, which can go away and come back at the same address. No engine, no DBOS."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvicorn

from everswarm.client import EverswarmClient
from everswarm.schemas.job import CycleParameters, Stage
from everswarm.schemas.server import Scope
from everswarm.server import app
from everswarm.server.auth.service import create_key
from everswarm.server.cycles import repository
from everswarm.server.database import Database
from everswarm.settings import EngineSettings, Settings, WorkerSettings

CYCLE = "cycle-1"


class LocalServer:
    """A server on `home`; the test stops it."""

    def __init__(self, home: Path, *, worker: WorkerSettings | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(home=home, engine=EngineSettings(enabled=False), worker=worker or WorkerSettings())
        self.database = Database(self.settings.sqlalchemy_url, key_file=self.settings.text_key_file)
        self.database.migrate()
        self.key = create_key(self.database, scope=Scope.ADMIN, label="test").key
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> EverswarmClient:
        return EverswarmClient(self.url, self.key)

    def start(self) -> None:
        """Listen; at the address of the last time, if there was one."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self.port))
        listening.listen()
        self.port = listening.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(app.create_app(self.settings), log_level="error", lifespan="on"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        with patch.object(app, "LISTEN_FIRST_SECONDS", 3600), self.client() as client:  # the cycles are not launched
            self._thread.start()
            client.health()  # answers once it is up

    def stop(self) -> None:
        """Be gone: nobody listens any more."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()
            self._server = None

    def close(self) -> None:
        self.stop()
        self.database.close()

    def queue(self, stage: Stage = Stage.CURATE) -> str:
        """Have one job for workers; return its id."""
        now = datetime.now(UTC)
        with self.database.transaction() as connection:
            parameters = CycleParameters(student="tiny")
            repository.insert_cycle(connection, CYCLE, parameters=parameters, trigger="manual", created_at=now)
            repository.insert_stage(connection, CYCLE, stage, state="queued", inputs={}, created_at=now)
        return f"{CYCLE}.{stage}"

    def stage(self, job_id: str) -> Any:
        """Return the row of a job as the server has it."""
        with self.database.read() as connection:
            return repository.find_stage(connection, job_id)
