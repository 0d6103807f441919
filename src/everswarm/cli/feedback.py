"""`everswarm feedback`: bring judgements in, take them out, look at them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from everswarm.cli.feedback_curate import EXAMPLES as CURATE_EXAMPLES
from everswarm.cli.feedback_curate import curate
from everswarm.cli.feedback_erase import EXAMPLES as ERASE_EXAMPLES
from everswarm.cli.feedback_erase import erase
from everswarm.cli.feedback_export import EXAMPLES as EXPORT_EXAMPLES
from everswarm.cli.feedback_export import export
from everswarm.cli.feedback_home import opened_home
from everswarm.cli.local import HomeOption
from everswarm.cli.screen import JsonOption, console, print_json
from everswarm.errors import BadRequestError, NoSpaceError

if TYPE_CHECKING:
    from everswarm.server.feedback.files.importer import ImportReport

IMPORT_EXAMPLES = """Examples: everswarm feedback import judged.jsonl

everswarm feedback import feedback-history-export.json --consent

everswarm feedback import sharegpt.jsonl.gz --consent --liked --device archive"""

app = typer.Typer(help="Bring feedback in and out, and see what there is.", no_args_is_help=True)
app.command("export", epilog=EXPORT_EXAMPLES)(export)
app.command("curate", epilog=CURATE_EXAMPLES)(curate)
app.command("erase", epilog=ERASE_EXAMPLES)(erase)


@app.command(name="import", epilog=IMPORT_EXAMPLES)
def import_feedback(
    file: Annotated[Path, typer.Argument(help="JSON lines or a JSON list, plain or gzip.")],
    form: Annotated[str, typer.Option("--format", help="auto, everswarm, openai, sharegpt or open-webui.")] = "auto",
    device: Annotated[str, typer.Option(help="Whose the interactions are, where the format has no users.")] = "import",
    consent: Annotated[
        bool, typer.Option("--consent", help="Their people agree to training: formats of others cannot say it.")
    ] = False,
    liked: Annotated[
        bool, typer.Option("--liked", help="The answers are good ones: OpenAI and ShareGPT files carry no judgement.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Import judged interactions. Importing a file again adds nothing; broken records are reported, the rest is kept.

    Reads our own JSON lines, OpenAI's messages and fine-tuning lines, ShareGPT (one interaction an answer), and
    Open WebUI's export of feedback.
    """
    from everswarm.server.feedback.files.formats import FORMATS
    from everswarm.server.feedback.files.importer import import_file
    from everswarm.server.feedback.reading import identifier_of

    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not there"
        raise BadRequestError(f"{file} {what}. Give the path of a JSON lines file.")
    if form not in ("auto", *FORMATS):
        raise BadRequestError(f"There is no format {form!r}. Choose one of: auto, {', '.join(FORMATS)}.")
    if not device or identifier_of(device) != device:
        raise BadRequestError(f"--device {device!r}: use letters, digits and . _ : @ / + - only.")
    with opened_home(home) as (_, database), _bytes_bar(as_json) as progress:
        task = progress.add_task(f"importing {file.name}", total=file.stat().st_size)
        try:
            report = import_file(
                database,
                file,
                form=next((known for known in FORMATS if known == form), None),
                device=device,
                consent=consent,
                liked=liked,
                on_progress=lambda done: progress.update(task, completed=done),
            )
        except NoSpaceError as error:
            raise NoSpaceError(f"{error} What was imported before is kept: import the file again to go on.") from error
    if as_json:
        print_json(report._asdict())
    else:
        _print_import(report)
    if report.error_count:
        raise typer.Exit(1)


@app.command()
def stats(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show how much people said, what they thought, and when."""
    from everswarm.cli.feedback_picture import draw
    from everswarm.server.feedback.service import stats as read_stats
    from everswarm.server.feedback.statistics import read_picture

    with opened_home(home) as (_, database):
        found, picture = read_stats(database), read_picture(database)
    if as_json:
        print_json(found.model_dump(mode="json") | picture.model_dump(mode="json"))
    else:
        draw(console, found, picture)


def _bytes_bar(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)


def _print_import(report: ImportReport) -> None:
    unit = "records" if report.format in ("sharegpt", "open-webui") else "lines"
    console.print(
        f"{report.read} {unit} read: {report.stored} stored, {report.duplicates} were there already, "
        f"{report.error_count} could not be used"
    )
    for line, message in report.errors:
        console.print(f"  line {line}: {message}", markup=False)
    if report.error_count > len(report.errors):
        console.print(f"  … and {report.error_count - len(report.errors)} more")
    for sentence in _remarks(report):
        console.print(sentence, markup=False)


def _remarks(report: ImportReport) -> Iterator[str]:
    """Say what the numbers do not: what will not be learnt from, and what was changed on the way."""
    foreign = report.format not in (None, "everswarm")
    if report.judged_again:
        yield f"{report.judged_again} of those that were there now have the consent, or the liking, of this import."
    if report.without_consent and foreign:
        yield (
            f"{report.without_consent} will not be learnt from: the format {report.format} does not tell whether "
            "people agreed. If they did, import the file again with --consent."
        )
    elif report.without_consent:
        yield f"{report.without_consent} will not be learnt from: their records carry no consent."
    if report.unjudged:
        what = "; if all their answers are good ones, add --liked" if report.format in ("openai", "sharegpt") else ""
        yield f"{report.unjudged} carry no judgement, so there is nothing to learn from them{what}."
    if report.cleaned:
        yield f"Control characters were taken out of {report.cleaned} records."
    if report.ahead:
        yield f"{report.ahead} have a time that is more than a day ahead of this machine's clock; they are kept so."
