"""`everswarm feedback erase`: what it says, what it asks, and who does the work."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.server.erasure.world import World
from typer.testing import CliRunner, Result

from everswarm.cli import feedback_erase
from everswarm.errors import BadRequestError, ConfigurationError, EverswarmError, NotFoundError
from everswarm.schemas.erasure import Erasure
from everswarm.server.database import Database
from everswarm.server.feedback.service import check_key
from everswarm.server.feedback.tables import interactions
from everswarm.server.home import HomeLock
from everswarm.server.sealing import KEY_NAME, KEY_VARIABLE
from everswarm.settings import Settings

Erase = Callable[..., Result]


@pytest.fixture
def world(home: Path) -> Iterator[World]:
    """A home as a stopped server left it: a device whose record was learnt from."""
    settings = Settings(home=home)
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    database.migrate()
    made = World(database, home / "artifacts")
    made.asks("phone-7", "p-1")
    made.asks("tablet", "t-1")
    made.runs_cycle("c1", {"p-1": "phone-7", "t-1": "tablet"})
    yield made
    database.close()


@pytest.fixture
def erase(home: Path) -> Erase:
    """Return how to type the command; an error of ours is raised, as it is before `main` explains it."""
    app = typer.Typer()
    app.command()(feedback_erase.erase)

    def type_command(*arguments: str, typed: str | None = None) -> Result:
        done = CliRunner().invoke(app, ["--home", str(home), *arguments], input=typed)
        if isinstance(done.exception, EverswarmError):
            raise done.exception
        return done

    return type_command


@pytest.mark.parametrize("named", [(), ("--user", "a", "--device", "b")])
def test_exactly_one_is_named(erase: Erase, named: tuple[str, ...]) -> None:
    with pytest.raises(BadRequestError, match="exactly one of --user, --device and --interaction") as error:
        erase(*named)
    assert error.value.exit_code == 2


def test_who_is_unknown_ends_with_1(erase: Erase, world: World) -> None:
    with pytest.raises(NotFoundError, match="Nothing is known of the user 'phone'") as error:
        erase("--user", "phone", "--yes")
    assert error.value.exit_code == 1


def test_without_a_terminal_it_wants_yes(erase: Erase, world: World) -> None:
    with pytest.raises(BadRequestError, match="Say --yes, or look first with --dry-run"):
        erase("--device", "phone-7")
    assert world.count(interactions) == 2


def test_a_dry_run_names_adapter_and_release_and_changes_nothing(erase: Erase, world: World) -> None:
    done = erase("--device", "phone-7", "--dry-run")
    shown = " ".join(done.stdout.split())
    assert done.exit_code == 0
    assert "Would be erased" in shown
    assert "v1.0" in shown
    assert "would be deleted" in shown
    assert world.count(interactions) == 2


def test_yes_erases_and_json_has_it_all(erase: Erase, world: World) -> None:
    done = Erasure.model_validate(json.loads(erase("--device", "phone-7", "--yes", "--json").stdout))
    assert done.erased.interactions == 1
    assert done.files_deleted
    [seen] = done.seen
    assert (seen.release, seen.release_state, seen.examples) == ("v1.0", "in use", 1)
    assert seen.adapter is not None
    assert world.count(interactions) == 1


@pytest.mark.parametrize("key", [None, "another"])
def test_without_the_key_that_sealed_the_texts_nothing_is_erased(
    erase: Erase, world: World, home: Path, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_key(world.database)  # as the server does when it starts
    (home / KEY_NAME).unlink()
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, base64.b64encode(b"k" * 32).decode())
    for option in ("--dry-run", "--yes"):
        with pytest.raises(ConfigurationError, match="key"):
            erase("--device", "phone-7", option)
    assert world.count(interactions) == 2


def test_no_files_leaves_them(erase: Erase, world: World) -> None:
    done = json.loads(erase("--device", "phone-7", "--yes", "--json", "--no-files").stdout)
    assert not done["files_deleted"]
    assert done["files"] > 0


def test_it_asks_first_and_says_whose_texts_the_files_hold(
    erase: Erase, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(question: str, **_: Any) -> bool:
        asked.append(question)
        raise typer.Abort

    monkeypatch.setattr(feedback_erase, "_has_terminal", lambda: True)
    monkeypatch.setattr(typer, "confirm", answer)
    assert erase("--device", "phone-7").exit_code == 1
    assert "which hold other people's texts too? (--no-files keeps them)" in asked[0]
    assert world.count(interactions) == 2


def test_a_running_server_does_it_itself(
    erase: Erase, world: World, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, str, Any]] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def request(self, method: str, path: str, *, json: Any) -> Any:
            sent.append((method, path, json))
            return {
                "dry_run": False, "erased": {}, "seen": [], "files": 0, "files_bytes": 0, "files_deleted": True,
                "next_steps": ["and then"],
            }  # fmt: skip

    monkeypatch.setattr(feedback_erase, "connect", lambda settings, timeout_seconds: Client())
    with HomeLock(home, address="here"):
        erase("--user", "phone-7", "--yes")
    wish = {"user": "phone-7", "device": None, "interaction": None, "files": True, "dry_run": False}
    assert sent == [("POST", "/api/erasures", wish)]
    assert world.count(interactions) == 2  # nobody else touched it
