"""`everswarm keys`: who may do what."""

from __future__ import annotations

from typing import Annotated

import typer

from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table
from everswarm.schemas.server import KeyCreate, Scope

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


@app.command(epilog="Example: everswarm keys create --scope device --label 'my phone'")
def create(
    scope: Annotated[Scope, typer.Option(help="What the key may do.")] = Scope.USER,
    label: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. It is shown this once."""
    with connect(settings_of(home)) as client:
        made = client.create_key(KeyCreate(scope=scope, label=label or scope.value))
    if as_json:
        print_json(made)
        return
    console.print(f"{scope.value} key for '{made.label}', shown this once:", markup=False)
    console.print(made.key, markup=False, soft_wrap=True)


@app.command(name="list")
def list_keys(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the keys, without their secrets."""
    with connect(settings_of(home)) as client:
        found = client.keys()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            key.id,
            key.scope.value,
            key.label,
            f"{key.created_at:%Y-%m-%d %H:%M}",
            "revoked" if key.revoked_at else "valid",
        )
        for key in found
    ]
    print_table("Keys", ["id", "scope", "label", "made (UTC)", "state"], rows)


@app.command(epilog="Example: everswarm keys revoke 01234567-89ab-7cde-8f01-23456789abcd")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `everswarm keys list` shows it.")],
    home: HomeOption = None,
) -> None:
    """End a key, at once and for good."""
    with connect(settings_of(home)) as client:
        client.revoke_key(key_id)
    console.print(f"key {key_id} is revoked", markup=False)
