"""Start, retry, cancel and look at cycles. DBOS is launched in the background, so that the server listens at once."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Request

from everswarm.errors import BadRequestError, ConflictError, EverswarmError, NotFoundError, UnavailableError
from everswarm.identifiers import new_id
from everswarm.llm.pull import KNOWN_MODELS
from everswarm.schemas.job import Cycle, CycleParameters
from everswarm.server.cycles import repository
from everswarm.server.cycles.stages import begin_anew, check_enough_feedback
from everswarm.server.database import Database, take_turns
from everswarm.server.home import create_private_file
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import open_storage
from everswarm.settings import Settings

ROLE_CHARACTERS = 50  # what a release has room for

log = logging.getLogger(__name__)


class CycleService:
    """The cycles of one server."""

    def __init__(self, database: Database, artifacts: ArtifactStore, settings: Settings) -> None:
        self.database = database
        self.artifacts = artifacts
        self.settings = settings
        self.state = "starting"  # then ready, or failed
        self._launching: threading.Thread | None = None

    def start(self) -> None:
        """Launch DBOS in the background; `state` says how that goes."""
        self._launching = threading.Thread(target=self._launch, name="launch-cycles", daemon=True)
        self._launching.start()

    def stop(self) -> None:
        """Stop in order: what runs goes on at the next start."""
        if self._launching is not None:
            self._launching.join()
        if self.state == "ready":
            from everswarm.server.cycles import workflow

            workflow.shut_down()
            self.state = "starting"

    def request_cycle(self, parameters: CycleParameters, *, trigger: str) -> Cycle:
        """Start a cycle.

        Raises:
            ConflictError: one for the same role is running.
            NotEnoughFeedbackError: there is too little to learn from.
            BadRequestError: the student is none that a worker can fetch, or the role is no name.
        """
        if not (1 <= len(parameters.role) <= ROLE_CHARACTERS and parameters.role.isprintable()):
            raise BadRequestError(f"A role is a name of 1 to {ROLE_CHARACTERS} characters, such as 'ultralight'.")
        if parameters.student not in (*KNOWN_MODELS, self.settings.cycle.student):
            raise BadRequestError(
                f"No worker can fetch the student '{parameters.student}'; known: {', '.join(KNOWN_MODELS)}."
            )
        check_enough_feedback(self.database, minimum=parameters.minimum_examples)
        cycle_id = new_id()
        with self.database.transaction() as connection:
            take_turns(connection, "cycles")
            self._refuse_second(running=repository.running_cycles(connection), role=parameters.role)
            repository.insert_cycle(
                connection, cycle_id, parameters=parameters, trigger=trigger, created_at=datetime.now(UTC)
            )
        self._start_workflow(cycle_id, attempt=1)
        return self.cycle(cycle_id)

    def retry(self, cycle_id: str) -> Cycle:
        """Go on with a failed or cancelled cycle: finished stages stay, the others are done anew.

        Where something was erased after its snapshot all are: what was made of that is deleted.
        """
        with self.database.transaction() as connection:
            take_turns(connection, "cycles")
            cycle = self._existing(repository.find_cycle(connection, cycle_id), cycle_id)
            if cycle.state not in {"failed", "cancelled"}:
                raise ConflictError(
                    f"Cycle {cycle_id} is {cycle.state}; only a failed or cancelled one can be retried."
                )
            self._refuse_second(running=repository.running_cycles(connection), role=cycle.parameters.role)
            attempt = repository.attempt_of(connection, cycle_id) + 1
            if repository.snapshot_is_stale(connection, cycle_id):
                begin_anew(connection, open_storage(self.settings.artifacts_root), cycle_id)
            else:
                repository.delete_unfinished_stages(connection, cycle_id)
            repository.update_cycle(
                connection, cycle_id, state="running", reason=None, finished_at=None, attempt=attempt
            )
        self._start_workflow(cycle_id, attempt=attempt)
        return self.cycle(cycle_id)

    def cancel(self, cycle_id: str) -> Cycle:
        """End a running cycle; its worker notices at the next beat."""
        with self.database.transaction() as connection:
            take_turns(connection, "cycles")
            cycle = self._existing(repository.find_cycle(connection, cycle_id), cycle_id)
            attempt = repository.attempt_of(connection, cycle_id)
            if not repository.is_under_way(connection, cycle_id, attempt=attempt):
                raise ConflictError(f"Cycle {cycle_id} is {cycle.state} already.")
            repository.update_cycle(
                connection, cycle_id, state="cancelled", reason="cancelled by hand", finished_at=datetime.now(UTC)
            )
        return self.cycle(cycle_id)

    def cycle(self, cycle_id: str) -> Cycle:
        """Return one cycle."""
        with self.database.read() as connection:
            return self._existing(repository.find_cycle(connection, cycle_id), cycle_id)

    def recent(self, *, limit: int) -> list[Cycle]:
        """Return the newest cycles, newest first."""
        with self.database.read() as connection:
            return repository.recent_cycles(connection, limit)

    def defaults(self) -> CycleParameters:
        """Return the parameters that the settings name."""
        cycle = self.settings.cycle
        return CycleParameters(
            student=cycle.student,
            role=cycle.role,
            recipe=cycle.recipe,
            teachers=cycle.teachers,
            minimum_examples=cycle.minimum_examples,
            curation=self.settings.curation.rules,
        )

    def _launch(self) -> None:
        try:
            from everswarm.server.cycles import workflow

            context = workflow.Context(
                database=self.database,
                artifacts=self.artifacts,
                storage=open_storage(self.settings.artifacts_root),
                margin=self.settings.cycle.margin,
                scrubber=self.settings.feedback.scrubber,
                start_scheduled=self._start_scheduled,
            )
            url = self._system_database_url()
            workflow.launch(context, system_database_url=url, schedule=self.settings.cycle.schedule)
        except Exception:
            log.exception("the cycles could not be launched; chat and feedback go on")
            self.state = "failed"
            return
        # ready first: a cycle that is written down from here on is started by who asked, all others are in the list
        self.state = "ready"
        try:
            workflow.start_written_down()
        except Exception:
            log.exception("a cycle that is written down could not be started; start the server again")

    def _system_database_url(self) -> str:
        """Return where DBOS keeps its own tables: beside ours on Postgres, in a file of their own on SQLite."""
        url = self.database.engine.url
        if url.get_backend_name() != "sqlite":
            return url.render_as_string(hide_password=False)
        path = self.settings.home / "cycles.sqlite"
        create_private_file(path)
        return f"sqlite:///{path}"

    def _start_scheduled(self) -> None:
        try:
            self.request_cycle(self.defaults(), trigger="schedule")
        except EverswarmError as error:  # too little feedback this week, or one is running: next time
            log.warning("the scheduled cycle was not started: %s", error)

    def _start_workflow(self, cycle_id: str, *, attempt: int) -> None:
        """Start now, or leave it to the launch, which starts what is written down as running."""
        if self.state == "ready":
            from everswarm.server.cycles import workflow

            workflow.start(cycle_id, attempt=attempt)
        elif self.state == "failed":
            raise UnavailableError(
                "The cycle is written down and starts when the server is started again: the workflow engine could not "
                "be launched. See the server's log.",
                retry_after_seconds=60,
            )

    @staticmethod
    def _refuse_second(*, running: list[tuple[str, int, str]], role: str) -> None:
        for cycle_id, _attempt, running_role in running:
            if running_role == role:
                raise ConflictError(
                    f"Cycle {cycle_id} for the role {role} is running. Wait for it, or cancel it: "
                    f"everswarm cycle cancel {cycle_id}"
                )

    @staticmethod
    def _existing(cycle: Cycle | None, cycle_id: str) -> Cycle:
        if cycle is None:
            raise NotFoundError(f"There is no cycle {cycle_id}. List them: everswarm cycle list")
        return cycle


def _cycles_of(request: Request) -> CycleService:
    service: CycleService = request.app.state.cycles
    return service


CyclesDep = Annotated[CycleService, Depends(_cycles_of)]
