"""What the doctor looks at on this machine: the home, the disk, the port, what is installed, the embedded model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import BaseModel

from everswarm import __version__
from everswarm.cli.doctor_server import RunningServer
from everswarm.cli.screen import size
from everswarm.cli.serve import listen
from everswarm.cli.supervise import training_is_installed
from everswarm.errors import ConfigurationError
from everswarm.settings import Settings, config_path, meant

SCARCE_BYTES = 2 * 10**9  # a model with its training weights, and room for the databases
TOO_LITTLE_BYTES = 100 * 10**6
PREFIX = "EVERSWARM_"
OTHER_VARIABLES = {  # that we read, and that are no settings
    f"{PREFIX}{name}" for name in ("CONFIG", "SERVER", "KEY", "DEVICE_HOME", "STAGE_FOLDER", "STAGE_CACHE")
}
TOLD_ELSEWHERE = ("endpoint ", "tool server ")  # problems of a server that have lines of their own
SERVER_LIBRARIES = ("aiohttp", "dbos", "fastapi", "orjson", "sqlalchemy", "uvicorn")

Level = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `note`: worth knowing, and nothing is broken."""

    name: str
    level: Level
    text: str
    hint: str = ""  # what to do


def check_machine(settings: Settings, running: RunningServer | None) -> list[Check]:
    """Return what was found, in the order in which to mend it."""
    return [
        _check_config(),
        *_check_variables(),
        _installed("server", server_is_installed(), level="failed"),
        _installed("engine", importlib.util.find_spec("xllamacpp") is not None, without="No embedded model."),
        _installed("training", training_is_installed(), without="Cycles wait for a worker elsewhere."),
        _check_home(settings.home),
        _check_disk(settings.home),
        _check_model(settings),
        _check_server(settings, running),
    ]


def server_is_installed() -> bool:
    """Whether the rooms of the server can be imported."""
    return all(importlib.util.find_spec(name) for name in SERVER_LIBRARIES)


def _installed(extra: str, is_there: bool, *, without: str = "", level: Level = "note") -> Check:
    if is_there:
        return Check(extra, "ok", "installed")
    return Check(extra, level, f"not installed. {without}".strip(), f"pip install 'everswarm[{extra}]'")


def _check_config() -> Check:
    path = config_path().absolute()
    read = [str(found) for found in (path, Path(".env").absolute()) if found.exists()]
    if not path.exists():
        text = f"there is no {path.name} in {path.parent}"
        return Check("settings", "ok", f"{text}; {read[0]} is read" if read else text)
    return Check("settings", "ok", f"from {' and '.join(read)}")


def _check_variables() -> list[Check]:
    """Name variables that look like a setting and are none: a misspelt one would do nothing, silently."""
    known = _variables(Settings, PREFIX)
    sections = {PREFIX + name.upper() for name in Settings.model_fields}
    return [
        Check("variable", "note", f"{name} is no setting and is ignored{meant(name.upper(), known)}")
        for name in sorted({*os.environ, *dotenv_values(".env")})
        if name.upper().startswith(PREFIX)
        and name.upper() not in OTHER_VARIABLES
        and name.upper().partition("__")[0] not in sections  # below a section a misspelt name is an error
    ]


def _variables(section: type[BaseModel], prefix: str) -> list[str]:
    """Return the variables of all settings, those within sections included."""
    names = []
    for name, field in section.model_fields.items():
        variable = prefix + name.upper()
        names.append(variable)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _variables(field.annotation, f"{variable}__")
    return names


def _check_home(home: Path) -> Check:
    nearest = _nearest(home)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Check(
            "home",
            "failed",
            f"{home} cannot be written to",
            "set EVERSWARM_HOME to a folder that this user may write to",
        )
    if not home.exists():
        return Check("home", "ok", f"{home}, made at the first start")
    if not home.is_dir():
        return Check("home", "failed", f"{home} is not a folder", "set EVERSWARM_HOME to a folder")
    if sys.platform != "win32" and stat.S_IMODE(home.stat().st_mode) & 0o077:
        return Check("home", "failed", f"{home} can be read by others on this machine", f"chmod 700 {home}")
    return Check("home", "ok", f"{home}, private")


def _check_disk(home: Path) -> Check:
    free = shutil.disk_usage(_nearest(home)).free
    text = f"{size(free)} free"
    if free < TOO_LITTLE_BYTES:
        return Check("disk", "failed", text, "make room, or set EVERSWARM_HOME to a larger disk")
    if free < SCARCE_BYTES:
        return Check("disk", "note", text, f"training wants {size(SCARCE_BYTES)}")
    return Check("disk", "ok", text)


def _check_model(settings: Settings) -> Check:
    from everswarm.llm.pull import KNOWN_MODELS

    model = settings.engine.model
    path = settings.models_dir / model.replace("/", "--") / "model.gguf"
    if path.is_file():
        return Check("model", "ok", f"{model}, {size(path.stat().st_size)}")
    known = KNOWN_MODELS.get(model)
    if known is None:
        return Check(
            "model", "note", f"{model} is none that the engine has", f"[engine] takes {', '.join(KNOWN_MODELS)}"
        )
    return Check("model", "note", f"{model} is fetched when needed, {size(known.size_bytes)}", "everswarm models pull")


def _check_server(settings: Settings, running: RunningServer | None) -> Check:
    if running is None:
        return _check_port(settings)
    health, again = running.health, "stop the server and start it again"
    text = f"runs at {running.url}, version {health.version}, {health.status}"
    if running.problem:
        text = f"{text}; it does not say which endpoints it uses: {running.problem}"
        return Check("server process", "failed", text, again)
    if health.status != "healthy":
        others = [problem for problem in health.problems if not problem.startswith(TOLD_ELSEWHERE)]
        return Check("server process", "failed", f"{text}: {'; '.join(others) or _where_told(health.problems)}")
    if health.version != __version__:
        return Check("server process", "note", text, f"this command has {__version__}: {again}")
    return Check("server process", "ok", text)


def _where_told(problems: Sequence[str]) -> str:
    is_endpoint = any(problem.startswith("endpoint ") for problem in problems)
    is_tools = any(problem.startswith("tool server ") for problem in problems)
    return " and ".join(
        [*(["see the endpoints"] if is_endpoint or not is_tools else []), *(["see tools"] if is_tools else [])]
    )


def _check_port(settings: Settings) -> Check:
    try:
        listen(settings.host, settings.port).close()
    except ConfigurationError as error:
        return Check("server process", "failed", str(error).partition(". ")[0], "stop what uses it, or serve --port 0")
    where = f"port {settings.port} is free" if settings.port else "it takes any free port"
    return Check("server process", "ok", f"does not run; {where}")


def _nearest(path: Path) -> Path:
    """Return the folder itself, or the nearest above it that is there."""
    return next(parent for parent in [path, *path.parents] if parent.exists())
