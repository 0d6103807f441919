"""`everswarm release`: what devices run."""

from __future__ import annotations

import typer

from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, print_json, print_table, size

app = typer.Typer(help="See the releases that devices get.", no_args_is_help=True)


@app.command(name="list")
def list_releases(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the releases, newest first."""
    with connect(settings_of(home)) as client:
        found = client.releases()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.version,
            item.role,
            item.student,
            size(item.adapter.size_bytes) if item.adapter else "base only",
            f"{item.created_at:%Y-%m-%d %H:%M}",
            item.reason,
        )
        for item in found
    ]
    print_table("Releases", ["version", "role", "student", "#adapter", "made (UTC)", "why"], rows)
