"""`everswarm feedback export`: judged interactions, or a curated dataset version, as files for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from everswarm.cli.feedback_home import opened_home
from everswarm.cli.local import HomeOption
from everswarm.cli.screen import JsonOption, console, errors, print_json
from everswarm.errors import BadRequestError, NotFoundError

if TYPE_CHECKING:
    from everswarm.schemas.dataset import Dataset
    from everswarm.server.database import Database
    from everswarm.server.feedback.files.exporter import ExportReport

EXAMPLES = """Examples: everswarm feedback export judged.jsonl

everswarm feedback export my-dataset --format datasets

everswarm feedback export pairs.jsonl --format dpo

everswarm feedback export version --dataset 3f2a91c4"""
CYCLES_SEARCHED = 10_000
SHORTEST_PREFIX = 6


def export(
    path: Annotated[Path, typer.Argument(help="File to write; with --format datasets, and --dataset, a folder.")],
    form: Annotated[str, typer.Option("--format", help="jsonl, parquet, datasets, sft, dpo or kto.")] = "jsonl",
    raw: Annotated[
        bool, typer.Option("--raw", help="As it is stored: personal data is not masked, users keep their names.")
    ] = False,
    everyone: Annotated[bool, typer.Option("--all", help="Also those who did not agree to training.")] = False,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="A curated dataset version instead: its sha256, or the start of it.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export judged interactions with consent, without personal data, users by pseudonym; whole or not at all."""
    from everswarm.server.feedback.files.export_formats import EXPORT_FORMATS
    from everswarm.server.feedback.files.exporter import export_feedback
    from everswarm.server.feedback.scrubbing import scrubber_of

    chosen = next((known for known in EXPORT_FORMATS if known == form), None)
    if chosen is None:
        raise BadRequestError(f"There is no format {form!r}. Choose one of: {', '.join(EXPORT_FORMATS)}.")
    target = path.expanduser().absolute()
    if dataset is not None:
        if form != "jsonl":
            raise BadRequestError("--dataset writes a folder of parquet files with a card; leave --format out.")
        _export_version(target, dataset, force=force, home=home, as_json=as_json, others=raw or everyone)
        return
    if everyone:
        errors.print("Warning: --all exports what people said who did not agree to training. Do not train on it.")
    if raw and not yes:
        _confirm_raw()
    with (
        opened_home(home) as (settings, database),
        Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"exporting to {target.name}", total=_judged(database))
        report = export_feedback(
            database,
            target,
            form=chosen,
            scrubber=None if raw else scrubber_of(settings.feedback.scrubber),
            everyone=everyone,
            force=force,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    if as_json:
        print_json({"path": str(target), "format": chosen, **report._asdict()})
    else:
        _print_report(report, target, everyone=everyone)


def _confirm_raw() -> None:
    what = "--raw writes personal data as it is stored, under the names of its users."
    if not sys.stdin.isatty():
        raise BadRequestError(f"{what} There is no terminal to ask at: say --yes if that is meant.")
    errors.print(what)
    typer.confirm("Write it?", abort=True, err=True)


def _judged(database: Database) -> int:
    from everswarm.server.feedback.service import stats

    return stats(database).judged


def _print_report(report: ExportReport, target: Path, *, everyone: bool) -> None:
    console.print(f"{report.written} records written to {target}, of {report.read} judged interactions", markup=False)
    if report.without_consent:
        fate = "are among them" if everyone else "were left out"
        console.print(f"{report.without_consent} without consent {fate}")
    if report.without_use:
        console.print(f"{report.without_use} hold nothing for this format")
    if report.masked:
        console.print("masked: " + ", ".join(f"{count} × {kind}" for kind, count in report.masked.items()))


def _export_version(target: Path, wanted: str, *, force: bool, home: Path | None, as_json: bool, others: bool) -> None:
    from everswarm.server.feedback.files.versions import export_version
    from everswarm.server.registry.service import ArtifactStore

    if others:
        raise BadRequestError("--raw and --all are of judged interactions; a dataset version is what it is.")
    with opened_home(home) as (settings, database):
        version = _find_version(database, wanted, artifacts_root=settings.artifacts_root)
        rows = export_version(ArtifactStore(settings.artifacts_root, database), version, target, force=force)
    if as_json:
        print_json({"path": str(target), "dataset": version.data.sha256, "rows": rows})
        return
    counts = ", ".join(f"{count} {name}" for name, count in rows.items())
    console.print(f"dataset {version.data.sha256[:12]} written to {target}: {counts}", markup=False)


def _find_version(database: Database, wanted: str, *, artifacts_root: str) -> Dataset:
    """Return the dataset that the curation of a cycle, or `feedback curate`, made.

    Raises:
        BadRequestError: the start of a digest is too short, or several datasets begin so.
        NotFoundError: none does.
    """
    from everswarm.schemas.dataset import Dataset
    from everswarm.schemas.job import Stage
    from everswarm.server.cycles.repository import recent_cycles
    from everswarm.server.registry.datasets import kept_datasets
    from everswarm.server.registry.storage import open_storage

    if len(wanted) < SHORTEST_PREFIX:
        raise BadRequestError(
            f"--dataset {wanted!r} is too short; give at least {SHORTEST_PREFIX} digits of its sha256."
        )
    storage = open_storage(artifacts_root)
    with database.read() as connection:
        cycles = recent_cycles(connection, CYCLES_SEARCHED)
        made = [kept.dataset for kept in kept_datasets(connection, storage)]
    results = [stage.result for cycle in cycles for stage in cycle.stages if stage.stage is Stage.CURATE]
    made += [Dataset.model_validate(result) for result in results if result]
    found: dict[str, Dataset] = {}
    for dataset in made:  # of two with the same examples that one whose other files were not erased
        if dataset.data.sha256.startswith(wanted) and all(map(storage.exists, _files_of(dataset))):
            found.setdefault(dataset.data.sha256, dataset)
    if not found:
        raise NotFoundError(
            f"There is no dataset {wanted}, or its files were erased. `everswarm cycle show` names that of a cycle, "
            "and `everswarm feedback curate` makes one."
        )
    if len(found) > 1:
        raise BadRequestError(f"{len(found)} datasets begin with {wanted}; give more of the digest.")
    return next(iter(found.values()))


def _files_of(dataset: Dataset) -> list[str]:
    files = (dataset.data, dataset.preferences, dataset.desirabilities)
    return [artifact.sha256 for artifact in files if artifact is not None]
