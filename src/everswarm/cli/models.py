"""`everswarm models`: the files of the models on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table, size
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
    found = pull_gguf(model, settings.models_dir, on_progress=None if as_json else console.print)
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
