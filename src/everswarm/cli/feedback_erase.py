"""`everswarm feedback erase`: forget a person, a device or one interaction, and see what was trained with it.

A running server does it, because it holds answers in memory; where none runs, this process does.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from everswarm.cli.local import HomeOption, connect, settings_of
from everswarm.cli.screen import JsonOption, console, print_json, print_table, size
from everswarm.errors import BadRequestError, ConfigurationError
from everswarm.schemas.erasure import Erasure, ErasureRequest, Seen
from everswarm.settings import Settings

EXAMPLES = "Example: everswarm feedback erase --device phone-7 --dry-run"
TIMEOUT_SECONDS = 3600.0  # the files of all cycles are read
DIGEST_CHARACTERS = 12  # of a sha256 in a table; --json has all
DEVICES_SHOWN = 3


def erase(
    user: Annotated[
        str | None, typer.Option(help="A person: as an application names them, or key-… for a key.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="A device, with what its key sent.")] = None,
    interaction: Annotated[
        str | None, typer.Option(help="The id of one interaction; its whole conversation goes.")
    ] = None,
    files: Annotated[
        bool, typer.Option("--files/--no-files", help="Delete the files of ended cycles that hold any of it, too.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase what is stored of a user, a device or one interaction, and list what was trained with it."""
    if sum(name is not None for name in (user, device, interaction)) != 1:
        raise BadRequestError("Name exactly one of --user, --device and --interaction.")
    if not (dry_run or yes or _has_terminal()):
        raise BadRequestError(
            "What is erased cannot be brought back, and there is no terminal to ask at. Say --yes, or look first "
            "with --dry-run."
        )
    settings = settings_of(home)
    wish = ErasureRequest(user=user, device=device, interaction=interaction, files=files)
    if dry_run or not yes:
        found = _erase(settings, wish.model_copy(update={"dry_run": True}))
        if dry_run:
            _show(found, as_json=as_json)
            return
        if not as_json:
            _print_counts(found)
        typer.confirm(_question(found, files=files), abort=True, err=True)
    _show(_erase(settings, wish), as_json=as_json)


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _erase(settings: Settings, wish: ErasureRequest) -> Erasure:
    from everswarm.server.home import HomeLock

    if os.environ.get("EVERSWARM_SERVER"):
        return _ask_server(settings, wish)
    with ExitStack() as held:
        try:
            held.enter_context(HomeLock(settings.home, address="everswarm feedback erase"))
        except ConfigurationError:  # a server has it
            return _ask_server(settings, wish)
        return _erase_here(settings, wish)


def _ask_server(settings: Settings, wish: ErasureRequest) -> Erasure:
    with connect(settings, timeout_seconds=TIMEOUT_SECONDS) as client:
        return Erasure.model_validate(client.request("POST", "/api/erasures", json=wish.model_dump()))


def _erase_here(settings: Settings, wish: ErasureRequest) -> Erasure:
    from everswarm.server.database import Database
    from everswarm.server.erasure import erase as erase_now
    from everswarm.server.feedback.service import check_key
    from everswarm.server.gateway.cache import AnswerCache
    from everswarm.server.registry.storage import open_storage

    kept, path = settings.gateway.cache, settings.home / "cache.sqlite"
    cache = AnswerCache(path, ttl_seconds=kept.ttl_seconds, size_bytes=kept.size_mb * 10**6) if path.exists() else None
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    try:
        database.migrate()
        check_key(database)  # with another key nobody would be found under their pseudonym
        storage = open_storage(settings.artifacts_root)
        return erase_now(database, storage, cache=cache, **wish.model_dump())
    finally:
        database.close()
        if cache is not None:
            cache.close()


def _question(found: Erasure, *, files: bool) -> str:
    if not (files and found.files):
        return "Erase this for good?"
    return (
        f"Erase this for good, with {found.files} files of ended cycles ({size(found.files_bytes)}), which hold other "
        "people's texts too? (--no-files keeps them)"
    )


def _show(done: Erasure, *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    _print_counts(done)
    if done.seen:
        columns = ["cycle", "made (UTC)", "dataset", "#records", "adapter", "release", "devices"]
        print_table("What saw it", columns, [_row(seen) for seen in done.seen])
    if done.files:
        verb = "deleted" if done.files_deleted else "would be deleted" if done.dry_run else "left"
        console.print(f"{done.files} files of ended cycles hold it ({size(done.files_bytes)}): {verb}")
    for sentence in done.next_steps:
        console.print(f"- {sentence}", markup=False)


def _print_counts(done: Erasure) -> None:
    rows = [(name.replace("_", " "), str(count)) for name, count in done.erased.model_dump().items() if count]
    print_table("Would be erased" if done.dry_run else "Erased", ["what", "#count"], rows)


def _row(seen: Seen) -> tuple[str, ...]:
    named = seen.devices[:DEVICES_SHOWN]
    more = seen.device_count - len(named)
    devices = ", ".join([*named, *([f"{more} more" if named else str(more)] if more > 0 else [])])
    release = f"{seen.release} ({seen.role}, {seen.release_state})" if seen.release else ""
    return (
        f"{seen.cycle_id} ({seen.cycle_state})",
        f"{seen.made_at:%Y-%m-%d %H:%M}",
        seen.dataset[:DIGEST_CHARACTERS] if seen.dataset else "snapshot only",
        "?" if seen.dataset and seen.examples is None else str(seen.examples or ""),
        (seen.adapter or "")[:DIGEST_CHARACTERS],
        release,
        devices,
    )
