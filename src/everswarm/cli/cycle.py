"""`everswarm cycle`: one pass of the loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from everswarm.cli.cycle_table import print_cycle
from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table
from everswarm.cli.supervise import training_is_installed
from everswarm.client import EverswarmClient
from everswarm.errors import UnauthorizedError, UnavailableError
from everswarm.schemas.job import Cycle
from everswarm.settings import Precision, TeacherSettings, parse_teacher

app = typer.Typer(help="Run a cycle and look at it.", no_args_is_help=True)
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 60.0  # how long a server may be away while we watch
Template = Literal["chat", "plain"]
CycleId = Annotated[str, typer.Argument(help="Id of the cycle, as `everswarm cycle list` shows it.")]


RUN_EXAMPLES = """Examples:

everswarm cycle run --recipe all-linear --train-examples 400

everswarm cycle run --teacher endpoint:primary

everswarm cycle run --teacher gguf:/models/teacher-Q4_K_M.gguf --no-hindsight
"""


@app.command(epilog=RUN_EXAMPLES)
def run(  # noqa: PLR0913, PLR0917  # each option of the command is a parameter
    recipe: Annotated[str | None, typer.Option(help="seed, all-linear or on-policy.")] = None,
    student: Annotated[str | None, typer.Option(help="Model that learns.")] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Who teaches; several times for an ensemble. student, weights:NAME-OR-FOLDER, gguf:PATH, "
            "endpoint:MODEL or vllm:NAME@URL. Paths are on the worker's machine. Default: those of the settings."
        ),
    ] = None,
    hindsight: Annotated[
        bool | None,
        typer.Option("--hindsight/--no-hindsight", help="Whether these teachers read the person's answer first."),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of teachers that are student or weights: float16 halves their memory.")
    ] = None,
    teacher_template: Annotated[
        Template | None, typer.Option(help="plain: these teachers are base models, without a chat template.")
    ] = None,
    train_examples: Annotated[int | None, typer.Option(help="Use at most this many training examples.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training examples, instead of the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of split, order and weights.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Watch it to its end.")] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a cycle: curate, label, distill, export, evaluate, release if not worse."""
    if recipe is not None and training_is_installed():
        from everswarm.training.recipes import load_recipe

        load_recipe(recipe)  # a misspelt one is told now, not after the labels are made
    taught_by = _teachers(teacher or [], hindsight=hindsight, precision=precision, template=teacher_template)
    wish: dict[str, Any] = {
        name: value
        for name, value in {
            "recipe": recipe,
            "student": student,
            "teachers": [one.model_dump(mode="json") for one in taught_by] or None,
            "train_examples": train_examples,
            "epochs": epochs,
            "seed": seed,
        }.items()
        if value is not None
    }
    settings = settings_of(home)
    with connect(settings) as client:
        cycle = client.start_cycle(wish)
    if wait:
        cycle = watch(lambda: connect(settings), cycle.id, quiet=as_json)
    print_json(cycle) if as_json else print_cycle(cycle)
    if cycle.state == "failed":
        raise typer.Exit(1)


def _teachers(names: list[str], **asked: object) -> list[TeacherSettings]:
    """Return the teachers that were named, each with what was `asked` of all of them.

    Raises:
        typer.BadParameter: a name is none, or cannot be what was asked.
    """
    chosen = {name: value for name, value in asked.items() if value is not None}
    if chosen and not names:
        raise typer.BadParameter(
            "--hindsight, --precision and --teacher-template are about the teachers that --teacher names, and it "
            "names none. Add --teacher student, or set it in everswarm.toml, under [[cycle.teachers]].",
            param_hint="--teacher",
        )
    try:
        parsed = [parse_teacher(name) for name in names]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--teacher") from None
    try:
        return [TeacherSettings.model_validate(one.model_dump() | chosen) for one in parsed]
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise typer.BadParameter(f"{reason}.", param_hint="--teacher") from None


@app.command(name="list")
def list_cycles(
    home: HomeOption = None,
    as_json: JsonOption = False,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, at most.")] = 20,
) -> None:
    """List the newest cycles."""
    with connect(settings_of(home)) as client:
        found = client.cycles(limit=limit)
    if as_json:
        print_json(found)
        return
    rows = [
        (item.id, item.state, item.parameters.role, f"{item.created_at:%Y-%m-%d %H:%M}", item.reason or "")
        for item in found
    ]
    print_table("Cycles", ["id", "state", "role", "started (UTC)", "why"], rows)


@app.command(epilog="Example: everswarm cycle show 01234567-89ab-7cde-8f01-23456789abcd --json")
def show(cycle_id: CycleId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show one cycle, stage by stage."""
    with connect(settings_of(home)) as client:
        cycle = client.cycle(cycle_id)
    print_json(cycle) if as_json else print_cycle(cycle)


@app.command(epilog="Example: everswarm cycle retry 01234567-89ab-7cde-8f01-23456789abcd")
def retry(cycle_id: CycleId, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Go on with a failed or cancelled cycle; finished stages are kept."""
    settings = settings_of(home)
    with connect(settings) as client:
        client.retry_cycle(cycle_id)
    cycle = watch(lambda: connect(settings), cycle_id, quiet=as_json)
    print_json(cycle) if as_json else print_cycle(cycle)
    if cycle.state == "failed":
        raise typer.Exit(1)


@app.command(epilog="Example: everswarm cycle cancel 01234567-89ab-7cde-8f01-23456789abcd")
def cancel(cycle_id: CycleId, home: HomeOption = None) -> None:
    """End a running cycle."""
    with connect(settings_of(home)) as client:
        client.cancel_cycle(cycle_id)
    console.print(f"cycle {cycle_id} is cancelled", markup=False)


def watch(find_server: Callable[[], EverswarmClient], cycle_id: str, *, quiet: bool = False) -> Cycle:
    """Follow a cycle to its end with a bar a stage; a server that restarts meanwhile is waited for.

    Raises:
        UnavailableError: it was away for too long.
        UnauthorizedError: it came back and does not know our key.
    """
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    silent_since: float | None = None
    client: EverswarmClient | None = None
    with Progress(*columns, console=console, disable=quiet) as progress, ExitStack() as clients:
        bars: dict[str, TaskID] = {}
        while True:
            try:
                client = client or clients.enter_context(find_server())
                cycle = client.cycle(cycle_id)
                silent_since = None
            except (UnavailableError, UnauthorizedError):
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_SECONDS:
                    raise
                clients.close()
                client = None  # it may come back on another port, with another key
                time.sleep(POLL_SECONDS)
                continue
            _draw(progress, bars, cycle)
            if cycle.state != "running":
                return cycle
            time.sleep(POLL_SECONDS)


def _draw(progress: Progress, bars: dict[str, TaskID], cycle: Cycle) -> None:
    for status in cycle.stages:
        if status.state == "waiting":
            continue
        if status.stage not in bars:
            bars[status.stage] = progress.add_task(status.stage.value, total=None, note="")
        bar, told = bars[status.stage], status.progress
        if status.state == "done":
            if not progress.tasks[bar].finished:
                progress.update(bar, total=1, completed=1, note=told.note if told else "")
        else:
            note = told.note if told else ("waiting for a worker" if status.state == "queued" else "")
            total = told.total if told and told.total else None
            progress.update(bar, total=total, completed=told.done if told and total else 0, note=note)
