"""The `everswarm` command."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from everswarm import __version__
from everswarm.cli import cycle, demo, device, doctor, feedback, keys, models, release, serve, swarm, worker
from everswarm.cli.screen import errors
from everswarm.errors import EverswarmError, NoSpaceError

app = typer.Typer(
    name="everswarm",
    help="A self-hosted swarm of open language models that trains itself.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="demo", epilog=demo.EXAMPLES)(demo.demo)
app.command(name="serve", epilog=serve.EXAMPLES)(serve.serve)
app.command(name="doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(name="worker", epilog=worker.EXAMPLES)(worker.worker)
app.add_typer(cycle.app, name="cycle")
app.add_typer(swarm.app, name="swarm")
app.add_typer(feedback.app, name="feedback")
app.add_typer(device.app, name="device")
app.add_typer(models.app, name="models")
app.add_typer(release.app, name="release")
app.add_typer(keys.app, name="keys")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"everswarm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Run the command; a known error is one message and its exit code, never a traceback."""
    try:
        app()
    except EverswarmError as error:
        sys.exit(_explain(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        place = f" {error.filename} could not be written." if error.filename else ""
        sys.exit(_explain(NoSpaceError(f"The disk is full.{place} Free some space and run the command again.")))
    except KeyboardInterrupt:
        sys.exit(130)


def _explain(error: EverswarmError) -> int:
    errors.print(f"[bold red]{error.title}.[/] ", end="")
    errors.print(str(error), markup=False)
    return error.exit_code


if __name__ == "__main__":
    main()
