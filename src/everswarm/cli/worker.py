"""`everswarm worker`: do the training work of a server, here or anywhere."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Annotated

import typer

from everswarm.cli.local import HomeOption, connect, connect_home, settings_of
from everswarm.cli.screen import console
from everswarm.cli.supervise import training_is_installed
from everswarm.errors import MissingExtraError
from everswarm.identifiers import new_id
from everswarm.processes import leave_with_parent

EXAMPLES = """Examples:

everswarm worker                                                       for the server on this machine

EVERSWARM_SERVER=https://swarm.example.org EVERSWARM_KEY=… everswarm worker    for one elsewhere
"""


def worker(
    home: HomeOption = None,
    once: Annotated[bool, typer.Option("--once", help="End when there is nothing to do.")] = False,
    local: Annotated[bool, typer.Option("--local", hidden=True, help="Started by `serve`.")] = False,
) -> None:
    """Lease training jobs, do them, hand in the results. Killed at any moment, nothing is lost."""
    if not training_is_installed():
        raise MissingExtraError("A training worker", "training")
    from everswarm.training.worker import Worker, local_worker_id

    if local:
        leave_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    settings = settings_of(home)
    os.environ["EVERSWARM_HOME"] = str(settings.home)
    client = connect(settings)
    named = "EVERSWARM_SERVER" in os.environ  # else the home's files say where the server is, after a restart too
    stopping = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda _number, _frame: stopping.set())
    Worker(
        client=client,
        worker_id=local_worker_id() if local else f"worker-{new_id()[-12:]}",
        home=settings.home / "worker",
        on_event=lambda text: console.print(text, markup=False),
        stopping=stopping,
        find_server=None if named else lambda: connect_home(settings),
    ).run(once=once)
