"""`everswarm serve`: the server, the embedded model and a training worker, in one command."""

from __future__ import annotations

import gc
import hashlib
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everswarm.cli.local import HomeOption, announce, settings_of, write_private
from everswarm.cli.screen import console
from everswarm.cli.supervise import LocalWorker, training_is_installed
from everswarm.client.loopback import is_loopback
from everswarm.errors import ConfigurationError, MissingExtraError, UnauthorizedError
from everswarm.schemas.server import Scope
from everswarm.settings import PROFILES, Settings, load_settings, meant

if TYPE_CHECKING:
    from everswarm.server.database import Database

EXAMPLES = """Examples:

everswarm serve                        on http://127.0.0.1:8000, all state in ~/.everswarm

everswarm serve --port 9000 --home /srv/swarm

HF_TOKEN=… everswarm serve --profile hf --profile embedded      the Hugging Face router, and ours where that fails

EVERSWARM_CYCLE__SCHEDULE='0 3 * * 1' everswarm serve      learns each Monday at 03:00 UTC
"""
CLI_KEY_LABEL = "commands on the server's machine"
WORKER_KEY_LABEL = "worker on the server's machine"


def _known_profiles(profiles: list[str] | None) -> list[str] | None:
    """Return the option as it is.

    Raises:
        ConfigurationError: there is no such profile; blames the command line, where the name stands.
    """
    for name in profiles or []:
        if name not in PROFILES:
            raise ConfigurationError(
                f"--profile {name}: there is no such profile{meant(name, PROFILES)}. There are {', '.join(PROFILES)}."
            )
    return profiles


def serve(
    home: HomeOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes a free one.", show_default="8000")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Models from here instead of the endpoints in the settings: {', '.join(PROFILES)}. May be repeated; "
            "the earlier is preferred.",
            show_default="as in the settings",
            callback=_known_profiles,
        ),
    ] = None,
    local_worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Start a training worker here.", show_default="if it can"),
    ] = None,
) -> None:
    """Run the server: chat, feedback, cycles and updates. Ctrl-C stops it in order."""
    settings = settings_of(home)
    changes: dict[str, Any] = {"home": settings.home, "host": host, "port": port}
    changes["endpoints"] = [{"profile": name} for name in profile] if profile else None
    settings = load_settings(**changes)
    run_server(settings, start_worker=settings.worker.local if local_worker is None else local_worker)


@dataclass
class Keys:
    """The keys that a running server needs on its machine."""

    cli: str
    worker: str
    sign_in: str | None  # only at the very first start


def run_server(settings: Settings, *, start_worker: bool) -> None:
    """Serve until a signal says stop."""
    try:
        import uvicorn

        from everswarm.server.app import create_app
        from everswarm.server.gateway.table import check_table
        from everswarm.server.home import HomeLock
    except ImportError as error:
        raise MissingExtraError("The server", "server") from error
    check_table(settings)
    try:
        listening = listen(settings.host, settings.port)
    except ConfigurationError:
        with HomeLock(settings.home, address="(starting)"):  # says more where our own server has the port
            raise
    url = f"http://{_host_for_url(settings.host)}:{listening.getsockname()[1]}"
    with listening, HomeLock(settings.home, address=url):
        keys = make_keys(settings)
        announce(settings, url=url)
        worker = LocalWorker(server=url, key=keys.worker, home=settings.home) if start_worker else None
        config = uvicorn.Config(
            create_app(settings),
            log_level="warning",
            timeout_graceful_shutdown=10,
            lifespan="on",
            access_log=False,
            proxy_headers=False,
        )
        server = _polite_server(config)
        welcome(settings, url=url, keys=keys, with_worker=start_worker)
        if worker is not None and training_is_installed():
            worker.start()
        _collect_garbage_rarely()
        try:
            server.run(sockets=[listening])
        finally:
            if worker is not None:
                worker.stop()
            console.print("stopped; an unfinished cycle goes on at the next start")


def _collect_garbage_rarely() -> None:
    """Leave the modules alone, and look at what is new less often: a sixth of what a chat costs, and long pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)


def make_keys(settings: Settings) -> Keys:
    """Return the keys of this machine; made at the first start, and again where one was revoked or lost."""
    from everswarm.server.auth.service import ensure_first_admin_key
    from everswarm.server.database import Database

    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    database.migrate()
    first = ensure_first_admin_key(database)
    cli = _kept_key(database, settings.home / "cli.key", scope=Scope.ADMIN, label=key_label(CLI_KEY_LABEL, settings))
    worker_label = key_label(WORKER_KEY_LABEL, settings)
    worker = _kept_key(database, settings.home / "worker.key", scope=Scope.WORKER, label=worker_label)
    database.close()
    return Keys(cli=cli, worker=worker, sign_in=first.key if first else None)


def key_label(purpose: str, settings: Settings) -> str:
    """Return the label of this home's key: several servers with a home each may share one database."""
    place = f"{socket.gethostname()}:{settings.home}"
    return f"{purpose} ({hashlib.sha256(place.encode()).hexdigest()[:8]})"


def _kept_key(database: Database, path: Path, *, scope: Scope, label: str) -> str:
    """Return the key in `path` while it is good; else put a new one there, and the old ones of its purpose end."""
    from everswarm.server.auth.service import create_key, principal_of, revoke_keys_labelled

    with suppress(OSError, UnicodeDecodeError, UnauthorizedError):
        kept = path.read_text(encoding="utf-8").strip()
        if principal_of(database, kept).scope == scope:
            return kept
    revoke_keys_labelled(database, label)
    made = create_key(database, scope=scope, label=label).key
    write_private(path, made)
    return made


def welcome(settings: Settings, *, url: str, keys: Keys, with_worker: bool) -> None:
    """Say where things are and what to do next."""
    console.print(f"[bold]everswarm[/] at [cyan]{url}[/]   (API docs: {url}/docs)")
    console.print(f"all state in {settings.home}", markup=False)
    if keys.sign_in:
        show_sign_in(settings.home, f"{url}/#key={keys.sign_in}")
    if not with_worker:
        console.print("Cycles wait for a worker from elsewhere: everswarm worker (EVERSWARM_SERVER, EVERSWARM_KEY).")
    elif not training_is_installed():
        console.print(
            "No training worker here: install it with pip install 'everswarm[training]', or start one elsewhere with "
            "everswarm worker. Cycles wait for it.",
            markup=False,
        )
    if not is_loopback(settings.host):
        console.print(
            "[yellow]This address is reachable from other machines over plain HTTP.[/] Put a reverse proxy with TLS in "
            "front (such as Caddy: everswarm.example.org { reverse_proxy 127.0.0.1:8000 })."
        )


def show_sign_in(home: Path, link: str) -> None:
    """Show a sign-in link to the person at the terminal; without one put it into a file: a log would keep it."""
    if sys.stdout.isatty():
        console.print("\nSign in with this link. It is shown this once; whoever has it is an administrator:")
        console.print(f"  {link}\n", markup=False, soft_wrap=True)
        return
    path = home / "sign-in.txt"
    write_private(path, f"{link}\n")
    console.print("\nSign in with the link in this file, then delete it; whoever has it is an administrator:")
    console.print(f"  {path}\n", markup=False, soft_wrap=True)


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses the port, or take another: "
            "--port 0 finds a free one."
        ) from error
    listening.listen(1024)
    return listening


def _host_for_url(host: str) -> str:
    if host in {"0.0.0.0", "::"}:
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _polite_server(config: Any) -> Any:
    """Return a uvicorn server that ends quietly on a signal, instead of raising it again after the shutdown."""
    import uvicorn

    class PoliteServer(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit and sig == signal.SIGINT  # a second Ctrl-C does not wait
            self.should_exit = True
            if (gateway := getattr(getattr(config.app, "state", None), "gateway", None)) is not None:
                gateway.turn_waiting_away()  # or their connections would be waited for

    return PoliteServer(config)
