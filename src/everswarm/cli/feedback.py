"""`everswarm feedback`: bring judgements in and look at them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from everswarm.cli.local import HomeOption, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table
from everswarm.errors import BadRequestError, ConfigurationError, NoSpaceError
from everswarm.settings import Settings

app = typer.Typer(help="Import feedback, and see what there is.", no_args_is_help=True)


@app.command(name="import", epilog="Example: everswarm feedback import judged.jsonl")
def import_feedback(
    file: Annotated[Path, typer.Argument(help="JSON lines, one judged interaction a line.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import judged interactions. Importing a file again adds nothing; broken lines are reported, the rest is kept."""
    from everswarm.server.database import Database
    from everswarm.server.feedback.importer import import_file

    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not there"
        raise BadRequestError(f"{file} {what}. Give the path of a JSON lines file.")
    settings = _local_settings(home)
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    with Progress(console=console, transient=True, disable=as_json) as progress:
        task = progress.add_task(f"importing {file.name}", total=file.stat().st_size)
        try:
            report = import_file(database, file, on_progress=lambda done: progress.update(task, completed=done))
        except NoSpaceError as error:
            raise NoSpaceError(f"{error} What was imported before is kept: import the file again to go on.") from error
    database.close()
    if as_json:
        print_json(report._asdict())
    else:
        console.print(
            f"{report.read} lines read: {report.stored} stored, {report.duplicates} were there already, "
            f"{report.error_count} could not be used"
        )
        for line, message in report.errors:
            console.print(f"  line {line}: {message}", markup=False)
        if report.error_count > len(report.errors):
            console.print(f"  … and {report.error_count - len(report.errors)} more")
    if report.error_count:
        raise typer.Exit(1)


@app.command()
def stats(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Count what people said."""
    from everswarm.server.database import Database
    from everswarm.server.feedback.service import stats as read_stats

    database = Database(_local_settings(home).sqlalchemy_url)
    database.migrate()
    found = read_stats(database)
    database.close()
    if as_json:
        print_json(found)
        return
    rows = [(name.replace("_", " "), str(value)) for name, value in found.model_dump().items()]
    print_table("Feedback", ["what", "#count"], rows)


def _local_settings(home: Path | None) -> Settings:
    """These commands work on the files of a home, running server or not; never on a server elsewhere."""
    if os.environ.get("EVERSWARM_SERVER"):
        raise ConfigurationError(
            "This command reads and writes the home on this machine, and EVERSWARM_SERVER names a server elsewhere. "
            "Run it on that server's machine, or unset the variable."
        )
    return settings_of(home)
