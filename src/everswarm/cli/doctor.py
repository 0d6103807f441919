"""`everswarm doctor`: what works on this machine, what does not, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from urllib.parse import urlsplit

import typer
from rich.table import Table
from rich.text import Text

from everswarm.cli.doctor_checks import Check, Level, check_machine, server_is_installed
from everswarm.cli.doctor_endpoints import (
    NO_CREDENTIAL,
    OPERATIONAL,
    UNVERIFIED,
    WITH_SERVER,
    EndpointRow,
    inspect_endpoints,
)
from everswarm.cli.doctor_server import RunningServer, running_server, uses_others
from everswarm.cli.doctor_tools import check_tools
from everswarm.cli.local import HomeOption, settings_of
from everswarm.cli.screen import JsonOption, console, errors, print_json
from everswarm.schemas.gateway import LimitView
from everswarm.settings import WEB_ROLES, Settings

EXAMPLES = """Examples:

everswarm doctor

everswarm doctor --json      for programs; exit code 1 when something is broken

EVERSWARM_ENDPOINTS='[{"profile":"ollama"}]' everswarm doctor      before a change is made
"""
MARKS = {"ok": Text("✓", style="green"), "note": Text("!", style="yellow"), "failed": Text("✗", style="bold red")}
WINDOWS = {1.0: "a second", 60.0: "a minute", 3600.0: "an hour", 86_400.0: "a day"}
STATE_STYLES = {UNVERIFIED: "yellow", WITH_SERVER: "green", OPERATIONAL: "green"}
WIDE_COLUMNS = 110  # a page where models and roles stand on one line
NAME_CHARACTERS = 18  # of an endpoint, on a narrower page
LONG_NAME_CHARACTERS = 40
MODEL_CHARACTERS = 26


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Look at the endpoints, live, and at this machine. Changes nothing and costs no tokens.

    Exit code 0: every role has an endpoint that can answer, and no check failed. With and without a running server.
    """
    settings = settings_of(home)
    with errors.status("asking the endpoints…"):  # shown at a terminal only
        running = running_server(settings)
        rows, checks = [], check_machine(settings, running)
        if server_is_installed():
            rows = inspect_endpoints(settings, running)
            checks = [*_check_table(settings, running), *_check_roles(settings, rows, running), *checks]
        checks += check_tools(settings, running)
    silent = _silent_roles(rows)
    is_broken = any(check.level == "failed" for check in checks) or any(row.quota_problem for row in rows)
    is_well = bool(rows) and not silent and not is_broken
    if as_json:
        endpoints = [{**asdict(row), "can_answer": row.can_answer} for row in rows]
        print_json(
            {
                "usable": is_well,
                "server": _shown(running),
                "silent_roles": silent,
                "endpoints": endpoints,
                "checks": [asdict(check) for check in checks],
            }
        )
    else:
        _print_endpoints(rows)
        _print_checks(checks)
        _print_verdict(rows, silent, is_well=is_well)
    raise typer.Exit(0 if is_well else 1)


def _check_table(settings: Settings, running: RunningServer | None) -> list[Check]:
    """Say so where the server has other endpoints than the settings here."""
    from everswarm.server.gateway.profiles import expand

    if running is None or not uses_others(running, expand(settings)):
        return []
    return [Check("endpoints", "note", "the server's, started with --profile or with other settings")]


def _check_roles(settings: Settings, rows: Sequence[EndpointRow], running: RunningServer | None) -> list[Check]:
    """Name the roles that no endpoint serves; where there is no endpoint at all, the verdict says that."""
    if not rows or (running is not None and running.problem):  # such a server does not tell who serves what
        return []
    served = {role for row in rows for role in row.roles}
    again = ", then stop the server and start it again" if running else ""
    return [
        Check(
            "role",
            "failed",
            f"no endpoint serves '{role}'",
            f"set endpoint in [roles.{role}], or add '{role}' to the roles of one of [[endpoints]]{again}",
        )
        for role in settings.roles
        if role not in served
    ]


def _shown(running: RunningServer | None) -> dict[str, object] | None:
    if running is None:
        return None
    health = running.health
    return {
        "url": running.url,
        "status": health.status,
        "problems": [*health.problems, running.problem] if running.problem else health.problems,
    }


def _silent_roles(rows: Sequence[EndpointRow]) -> list[str]:
    """Return the roles that endpoints are configured for and none can answer."""
    return [
        role
        for role in dict.fromkeys([*WEB_ROLES, *(role for row in rows for role in row.roles)])
        if (having := [row for row in rows if role in row.roles]) and not any(row.can_answer for row in having)
    ]


def _print_endpoints(rows: Sequence[EndpointRow]) -> None:
    table = Table(title="Endpoints", title_justify="left", title_style="bold", header_style="dim", box=None)
    table.pad_edge, table.collapse_padding = False, True
    for name in ("endpoint", "model", "state", "quota"):
        table.add_column(name, overflow="ellipsis", no_wrap=name != "model")  # the model gives way
    for row in rows:
        latency = "" if row.latency_ms is None else f"{row.latency_ms:.0f} ms"
        table.add_row(
            Text.assemble(_name(row.name), "\n", (_roles(row), "dim")),
            Text.assemble(_model(row), "\n", (_place(row), "dim")),
            Text.assemble(
                (row.state, "red" if row.problem else STATE_STYLES.get(row.state, "")), "\n", (latency, "dim")
            ),
            _quota(row),
        )
    _show(table)
    _print_problems(rows)


def _columns() -> int:
    """How wide the page is: as the terminal, or as COLUMNS says where the output goes elsewhere."""
    told = os.environ.get("COLUMNS", "")
    return min(console.width, int(told)) if told.isdecimal() and int(told) else console.width


def _show(what: Table | Text) -> None:
    console.print(what, width=_columns())


def _is_narrow() -> bool:
    return _columns() < WIDE_COLUMNS


def _name(name: str) -> str:
    most = NAME_CHARACTERS if _is_narrow() else LONG_NAME_CHARACTERS
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _roles(row: EndpointRow) -> str:
    if set(row.roles) == set(WEB_ROLES):
        return "all roles"
    return (",\n" if _is_narrow() else ", ").join(row.roles) or "no role"


def _model(row: EndpointRow) -> str:
    """Return the model; a long one on two lines, after the name of who made it."""
    if _is_narrow() and len(row.model) > MODEL_CHARACTERS:
        return row.model.replace("/", "/\n", 1)
    return row.model or "?"


def _place(row: EndpointRow) -> str:
    if row.base_url:
        return urlsplit(row.base_url).netloc
    return "this machine" if row.profile == "embedded" else ""  # the server does not tell addresses


def _print_problems(rows: Sequence[EndpointRow]) -> None:
    """Print each problem and each warning once, with the names of all that have it."""
    names: dict[tuple[Level, str], list[str]] = {}
    for row in rows:
        for problem in filter(None, (row.problem, row.quota_problem)):
            names.setdefault(("failed", problem), []).append(row.name)
        for warning in row.warnings:
            names.setdefault(("note", warning), []).append(row.name)
    if names:
        console.print()
        _print_findings([(level, "\n".join(map(_name, named)), text) for (level, text), named in names.items()])


def _quota(row: EndpointRow) -> Text:
    if row.state == NO_CREDENTIAL:
        return Text("not known", style="dim")
    if row.limits:
        return Text("\n").join(map(_left, row.limits))
    return Text("cannot be read", style="red") if row.quota_problem else Text("no limit known", style="dim")


def _left(limit: LimitView) -> Text:
    window = WINDOWS.get(limit.window_seconds, f"in {limit.window_seconds:.0f} s")
    return Text.assemble(f"{limit.left:,} {limit.unit} left", "\n", (f"of {limit.amount:,} {window}", "dim"))


def _print_checks(checks: Sequence[Check]) -> None:
    console.print("\n[bold]This machine[/]")
    _print_findings(
        [(check.level, check.name, f"{check.text} → {check.hint}" if check.hint else check.text) for check in checks]
    )


def _print_findings(findings: Sequence[tuple[Level, str, str]]) -> None:
    """Print findings below each other; what does not fit on the line stands below its text."""
    grid = Table.grid(padding=(0, 1))
    for _column in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for level, name, text in findings:
        grid.add_row(MARKS[level], Text(name), Text(text))
    _show(grid)


def _print_verdict(rows: Sequence[EndpointRow], silent: Sequence[str], *, is_well: bool) -> None:
    unable = sum(not row.can_answer for row in rows)
    if is_well and unable:
        words = f"Every role has an endpoint that can answer; {unable} of {len(rows)} endpoints cannot."
    elif is_well and any(row.state == UNVERIFIED for row in rows):
        words = "Every role has an endpoint; whether it can answer only a request will tell. See what is marked with !."
    elif is_well:
        words = "Everything that is needed works."
    elif not rows:
        words = "There is no endpoint. Enable [engine], or add [[endpoints]]."
    elif silent:
        words = f"No endpoint can answer as {', '.join(silent)}."
    else:
        words = "Mend what is marked with ✗."
    _show(Text(f"\n{words}", style="bold green" if is_well else "bold red"))
