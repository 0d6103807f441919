"""`everswarm feedback curate`: a dataset version of what a home holds, without a cycle."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from everswarm.cli.dataset_table import DIGEST_CHARACTERS, print_dataset
from everswarm.cli.feedback_home import opened_home
from everswarm.cli.local import HomeOption
from everswarm.cli.screen import JsonOption, console, print_json
from everswarm.errors import BadRequestError, MissingExtraError
from everswarm.settings import Settings

if TYPE_CHECKING:
    from everswarm.cli.dataset_making import OnProgress
    from everswarm.schemas.dataset import Dataset
    from everswarm.schemas.job import CycleParameters

EXAMPLES = """Examples: everswarm feedback curate

everswarm feedback curate --seed 7 --train-examples 400 --json

everswarm feedback curate --no-store --out my-dataset"""
NEEDED = ("polars", "pyarrow", "rensa", "xxhash")
ENGINES = ("polars", "ray")


def curate(
    seed: Annotated[int, typer.Option(help="Decides wherever nothing else does.")] = 0,
    minimum: Annotated[
        int | None, typer.Option(min=8, help="Refuse to make a smaller one.", show_default="cycle.minimum_examples")
    ] = None,
    train_examples: Annotated[int | None, typer.Option(min=8, help="Keep at most this many for training.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="polars, or ray beyond one machine.", show_default="curation.engine")
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Side by side; 0: a core each.", show_default="curation.processes"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write it to this new folder, which `datasets` and the Hub read.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="Keep it, and put what is suspicious into the review queue.")
    ] = True,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a dataset of the feedback there is, as a cycle would, and show what became of every record.

    The same feedback, rules and seed give the same dataset; making it again adds nothing.
    """
    if engine is not None and engine not in ENGINES:
        raise BadRequestError(f"There is no engine {engine!r}. Choose one of: {', '.join(ENGINES)}.")
    _require_training()
    from everswarm.cli.dataset_making import keep, make_dataset
    from everswarm.server.feedback.files.versions import export_version
    from everswarm.server.registry.service import ArtifactStore

    with (
        opened_home(home) as (settings, database),
        tempfile.TemporaryDirectory(prefix="everswarm-curate-") as folder,
        _progress(as_json) as on_progress,
    ):
        parameters = _parameters(settings, seed=seed, minimum=minimum, train_examples=train_examples)
        chosen = _with_engine(settings, engine=engine, processes=processes)
        made = make_dataset(database, chosen, parameters, folder=Path(folder), on_progress=on_progress)
        if out is not None:
            export_version(made.files, made.dataset, out.expanduser().absolute(), force=False)
        is_new = keep(database, ArtifactStore(settings.artifacts_root, database), made) if store else None
    if as_json:
        told = made.dataset.model_dump(mode="json", exclude={"split_of_user"})
        print_json({"stored": store, "new": is_new, "path": None if out is None else str(out), "dataset": told})
        return
    print_dataset(made.dataset)
    for sentence in _next_steps(made.dataset, is_new=is_new, out=out):
        console.print(f"- {sentence}", markup=False)


def _require_training() -> None:
    if not all(importlib.util.find_spec(name) for name in NEEDED):
        raise MissingExtraError("Curating feedback", "training")


def _with_engine(settings: Settings, *, engine: str | None, processes: int | None) -> Settings:
    chosen = {name: value for name, value in (("engine", engine), ("processes", processes)) if value is not None}
    return settings.model_copy(update={"curation": settings.curation.model_copy(update=chosen)})


def _parameters(settings: Settings, *, seed: int, minimum: int | None, train_examples: int | None) -> CycleParameters:
    from everswarm.schemas.job import CycleParameters

    return CycleParameters(
        student=settings.cycle.student,
        role=settings.cycle.role,
        recipe=settings.cycle.recipe,
        seed=seed,
        train_examples=train_examples,
        minimum_examples=settings.cycle.minimum_examples if minimum is None else minimum,
        curation=settings.curation.rules,
    )


@contextmanager
def _progress(quiet: bool) -> Iterator[OnProgress]:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total, what: progress.update(task, completed=done, total=total or None, description=what)


def _next_steps(dataset: Dataset, *, is_new: bool | None, out: Path | None) -> Iterator[str]:
    name = dataset.data.sha256[:DIGEST_CHARACTERS]
    if out is not None:
        yield f"Written to {out}."
    if is_new is None:
        yield "Not kept, and the review queue is as it was: --no-store."
        return
    yield "Kept." if is_new else "It was kept already; nothing was added."
    waiting = sum(dataset.card.for_review.values())
    if waiting:
        yield f"{waiting:,} records are in the review queue (GET /api/reviews): what is accepted counts the next time."
    yield f"Take it out with: everswarm feedback export FOLDER --dataset {name}"
    yield "Learn from the feedback with: everswarm cycle run"
