"""How commands on the server's own machine find it: `server.json` and the 0600 file `cli.key` in its home.

Elsewhere EVERSWARM_SERVER and EVERSWARM_KEY say where it is and who asks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from everswarm.client import EverswarmClient
from everswarm.errors import ConfigurationError, UnavailableError
from everswarm.settings import Settings, load_settings

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder with all state.", envvar="EVERSWARM_HOME", show_default="~/.everswarm"),
]


def settings_of(home: Path | None) -> Settings:
    """Read the settings, with the home that the command line names."""
    return load_settings(home=home.expanduser().resolve() if home else None)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, in one step."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def announce(settings: Settings, *, url: str) -> None:
    """Leave the running server's address for the commands of this machine; the key is there already."""
    write_private(settings.home / "server.json", json.dumps({"url": url, "pid": os.getpid()}))


def connect(settings: Settings, *, timeout_seconds: float = 60.0) -> EverswarmClient:
    """Return a client of the server that the environment names, or else of the one that runs on this home.

    Raises:
        ConfigurationError: the environment names a server and no key.
        UnavailableError: no server has announced itself on this home.
    """
    server, key = os.environ.get("EVERSWARM_SERVER"), os.environ.get("EVERSWARM_KEY")
    if server and not key:
        raise ConfigurationError("EVERSWARM_SERVER is set and EVERSWARM_KEY is not. Set both, or neither.")
    if server and key:
        return EverswarmClient(server, key, timeout_seconds=timeout_seconds)
    return connect_home(settings, timeout_seconds=timeout_seconds)


def connect_home(settings: Settings, *, timeout_seconds: float = 60.0) -> EverswarmClient:
    """Return a client of the server that runs on this home, whatever the environment names.

    Raises:
        UnavailableError: no server has announced itself on this home.
    """
    try:
        url = json.loads((settings.home / "server.json").read_text(encoding="utf-8"))["url"]
        key = (settings.home / "cli.key").read_text(encoding="utf-8").strip()
    except (OSError, ValueError, KeyError) as error:
        raise UnavailableError(
            f"No server has run on {settings.home}. Start one with: everswarm serve (or name another home with --home, "
            "or a server elsewhere with EVERSWARM_SERVER and EVERSWARM_KEY)."
        ) from error
    return EverswarmClient(url, key, timeout_seconds=timeout_seconds)
