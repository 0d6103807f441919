"""The tool servers of [tools.*]: what the running server says of them, or what can be seen without starting any."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dotenv import dotenv_values

from everswarm.cli.doctor_checks import Check
from everswarm.cli.doctor_server import RunningServer
from everswarm.settings import Settings
from everswarm.settings.swarm import ToolServerSettings

OPERATIONAL = "operational"
CONNECT_SECONDS = 2.0
PORTS = {"http": 80, "https": 443}


def check_tools(settings: Settings, running: RunningServer | None) -> list[Check]:
    """Return a check for each tool server: those of the running server, or else those of the settings."""
    if running is not None:
        known = running.health.tool_servers
        unknown = "the server does not have it: it was started with other settings"
        return [
            *(_as_server_says(name, state) for name, state in known.items()),
            *(Check(_title(name), "note", unknown) for name in settings.tools if name not in known),
        ]
    if not settings.tools:
        return []
    with ThreadPoolExecutor(max_workers=min(8, len(settings.tools))) as pool:  # side by side: each may be silent
        return list(pool.map(_look_at, settings.tools, settings.tools.values()))


def _as_server_says(name: str, state: str) -> Check:
    if state == OPERATIONAL:
        return Check(_title(name), "ok", state)
    if state.startswith("starting"):
        return Check(_title(name), "note", state)
    return Check(_title(name), "failed", f"the server says: {state}", f"mend [tools.{name}], or remove it")


def _look_at(name: str, tools: ToolServerSettings) -> Check:
    """Look at one without starting it and without a word to it."""
    section = f"[tools.{name}]"
    if missing := _unset([*tools.env, *filter(None, [tools.token_env])]):
        several = len(missing) > 1
        text = f"the {'variables' if several else 'variable'} {', '.join(missing)} {'are' if several else 'is'} not set"
        mend = f"set {'them' if several else 'it'}, or take {'them' if several else 'it'} out of {section}"
        return Check(_title(name), "failed", text, mend)
    if tools.url:
        return _check_url(name, tools.url)
    program = tools.command[0]
    if found := shutil.which(program):
        return Check(_title(name), "ok", f"{found}, started with the server")
    there = "is not a program that this user may run" if Path(program).exists() else "is not on the PATH, nor a file"
    return Check(_title(name), "failed", f"{program} {there}", f"install it, or mend command in {section}")


def _unset(names: Sequence[str]) -> list[str]:
    """Return the variables that are set neither here nor in the file `.env`."""
    written = dotenv_values(".env")
    return [name for name in names if not (os.environ.get(name) or written.get(name) or "").strip()]


def _check_url(name: str, url: str) -> Check:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return Check(_title(name), "note", f"{parts.netloc} is behind a proxy and was not asked")
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        why = f"no answer within {CONNECT_SECONDS:.0f} s" if isinstance(error, TimeoutError) else error.strerror
        text = f"{parts.netloc} does not answer: {why or type(error).__name__}"
        return Check(_title(name), "failed", text, f"start it, or mend url in [tools.{name}]")
    return Check(_title(name), "ok", f"{parts.netloc} answers")


def _title(name: str) -> str:
    return f"tools.{name}"
