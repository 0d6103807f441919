"""`everswarm models`: the files of the models on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table, size
from everswarm.schemas.artifact import ArtifactKind
from everswarm.settings import EMBEDDED_MODEL

app = typer.Typer(help="List and fetch models.", no_args_is_help=True)


@app.command(epilog=f"Example: everswarm models pull {EMBEDDED_MODEL}")
def pull(
    model: Annotated[str, typer.Argument(help="Name of the model.")] = EMBEDDED_MODEL,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a model's GGUF file, checked by its sha256. Does nothing when it is there."""
    from everswarm.llm.pull import pull_gguf

    settings = settings_of(home)
    found = pull_gguf(model, settings.models_dir, on_progress=None if as_json else _tell)
    if as_json:
        print_json({"model": found.model, "path": str(found.path), "sha256": found.sha256})
    else:
        console.print(f"{found.path}  {size(found.path.stat().st_size)}  sha256 {found.sha256}", markup=False)


@app.command(name="list")
def list_models(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List what the running server answers with."""
    with connect(settings_of(home)) as client:
        found = client.request("GET", "/v1/models")["data"]
    if as_json:
        print_json(found)
    else:
        print_table("Models", ["model", "served by"], [(item["id"], str(item.get("owned_by", ""))) for item in found])


@app.command(epilog="Example: everswarm models quantize")
def quantize(
    model: Annotated[
        str | None, typer.Argument(help="Student whose base devices run.", show_default="the student")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the quantised base of a student, once, and offer it to devices until the first release."""
    from everswarm.server.database import Database
    from everswarm.server.fleet.service import set_base
    from everswarm.server.registry.service import ArtifactStore
    from everswarm.training.export import base_gguf
    from everswarm.training.models import student_weights

    settings = settings_of(home)
    student = model or settings.cycle.student
    tell = None if as_json else _tell
    weights = student_weights(student, settings.models_dir, on_progress=tell)
    if tell:
        tell(f"quantising {student} for devices (once)")
    base = base_gguf(student, weights=weights, models_dir=settings.models_dir)
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    database.migrate()
    artifact = ArtifactStore(settings.artifacts_root, database).put_file(base.path, kind=ArtifactKind.BASE_GGUF)
    with database.transaction() as connection:
        set_base(connection, role=settings.cycle.role, student=student, base=artifact, quantization=base.quantization)
    database.close()
    if as_json:
        print_json({"model": student, "base": artifact, "quantization": base.quantization, "note": base.note})
    else:
        console.print(
            f"{student} as {base.quantization}: {size(artifact.size_bytes)}, sha256 {artifact.sha256}", markup=False
        )


def _tell(text: str) -> None:
    print(text, flush=True)
