"""The command line through its own door: what it prints, where, and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from tests.fakes.local_server import CYCLE, LocalServer

from everswarm.cli import cycle as cycle_command
from everswarm.cli import main as cli
from everswarm.cli import supervise
from everswarm.cli.local import connect, connect_home
from everswarm.cli.serve import CLI_KEY_LABEL, key_label, make_keys, show_sign_in
from everswarm.client import EverswarmClient
from everswarm.errors import UnauthorizedError
from everswarm.processes import start_python_child, stop_child
from everswarm.schemas.server import Scope
from everswarm.server.auth.service import list_keys, principal_of, revoke_keys_labelled
from everswarm.server.cycles import repository
from everswarm.server.database import Database
from everswarm.server.home import HomeLock
from everswarm.settings import Settings, TeacherSettings, load_settings

PATIENCE_SECONDS = 60.0
VERBS = ("demo", "serve", "worker", "cycle", "feedback", "device", "models", "release", "keys")
WITHOUT_EXAMPLE = {"cycle list", "feedback stats", "models list", "release list", "keys list"}  # nothing to add


class Result(NamedTuple):
    code: int
    out: str
    err: str  # with single spaces: the terminal's width does not matter

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return how to type a command; it runs in this process."""
    monkeypatch.chdir(tmp_path)

    def type_command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["everswarm", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, out, " ".join(err.split()))

    return type_command


class Served(NamedTuple):
    """A server that was started by its command."""

    home: Path
    url: str
    greeting: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all tests of this file, without an engine and without a worker."""
    home = tmp_path_factory.mktemp("served")
    log = home.parent / "serve.log"
    with log.open("w", encoding="utf-8") as output:
        child = start_python_child(
            ["-m", "everswarm.cli.main", "serve", "--no-worker", "--port", "0", "--home", str(home)],
            environment={"EVERSWARM_ENGINE__ENABLED": "false", "EVERSWARM_CONFIG": os.devnull},
            stdout=output,
            stderr=output,
        )
    try:
        url = wait_until_ready(child, home, log)
        yield Served(home, url, log.read_text(encoding="utf-8"))
    finally:
        code = stop_child(child, grace_seconds=20.0)
    assert code == 0, log.read_text(encoding="utf-8")
    assert "stopped; an unfinished cycle goes on at the next start" in log.read_text(encoding="utf-8")


def wait_until_ready(child: subprocess.Popen[str], home: Path, log: Path) -> str:
    """Return the server's address once it listens and its cycles are ready."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        if (home / "server.json").exists():
            url: str = json.loads((home / "server.json").read_text(encoding="utf-8"))["url"]
            with EverswarmClient(url) as client:
                if client.health().cycles == "ready":
                    return url
        time.sleep(0.05)
    raise AssertionError(f"the server did not start:\n{log.read_text(encoding='utf-8')}")


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, with what to type for it."""
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(cli.app)))


# --- help


def test_help_lists_the_verbs_and_what_each_is_for(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    for verb in VERBS:
        assert re.search(rf"^\W*{verb} {{2,}}\w", result.out, re.MULTILINE), verb


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_names_it(run: Run, name: str) -> None:
    result = run(*name.split(), "--help")
    assert (result.code, result.err) == (0, "")
    command = COMMANDS[name]
    assert command.help
    assert name in WITHOUT_EXAMPLE or f"everswarm {name}" in (command.epilog or "")
    unexplained = [item.name for item in command.params if not getattr(item, "help", None)]
    assert not unexplained


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.split()[-1] in {"list", "show", "stats", "create"}])
def test_every_command_that_prints_a_result_prints_it_as_json_too(name: str) -> None:
    assert any("--json" in item.opts for item in COMMANDS[name].params)


def test_version_is_printed(run: Run) -> None:
    assert re.fullmatch(r"everswarm \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_start_of_the_command_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "trl", "peft", "dbos", "fastapi", "sqlalchemy", "pyarrow", "polars", "xllamacpp"}
    code = f"import sys, everswarm.cli.main; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cycel",), "No such command 'cycel'"),
        (("cycle", "run", "--train-examples", "many"), "Invalid value for '--train-examples'"),
        (("cycle", "run", "--teacher", "gpt"), "Invalid value for --teacher: 'gpt' names no teacher. Write student,"),
        (("cycle", "run", "--teacher", "gguf:/a.gguf", "--precision", "nf4"), "precision is chosen for weights; a"),
        (("cycle", "run", "--no-hindsight"), "about the teachers that --teacher names, and it names none. Add"),
        (("cycle", "run", "--teacher-template", "jinja"), "Invalid value for '--teacher-template'"),
        (("keys", "create", "--scope", "god"), "'god' is not one of"),
        (("feedback", "import"), "Missing argument 'file'"),
    ],
)
def test_wrong_usage_is_exit_2(run: Run, arguments: tuple[str, ...], told: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert told in re.sub(r"[│╭╮╰╯─]+ ?", "", result.err)


def test_setting_that_cannot_be_used_is_exit_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_PORT", "70000")
    result = run("feedback", "stats")
    assert result.code == 2
    assert result.err.startswith("Configuration. The settings cannot be used. port: ")


# --- serve


def test_server_without_a_terminal_puts_the_sign_in_link_into_a_file_and_not_into_its_log(served: Served) -> None:
    assert f"everswarm at {served.url}" in served.greeting
    assert str(served.home / "sign-in.txt") in served.greeting
    assert "#key=" not in served.greeting
    assert re.fullmatch(rf"{re.escape(served.url)}/#key=esw_admin_\S+\n", (served.home / "sign-in.txt").read_text())


def test_sign_in_link_is_shown_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_sign_in(tmp_path, "http://127.0.0.1:8000/#key=esw_admin_x")
    assert "  http://127.0.0.1:8000/#key=esw_admin_x\n" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_machine_are_kept_from_start_to_start_and_made_again_when_revoked(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    first, second = make_keys(settings), make_keys(settings)
    assert (second.cli, second.worker, second.sign_in) == (first.cli, first.worker, None)
    database = Database(settings.sqlalchemy_url, key_file=settings.text_key_file)
    assert len(list_keys(database)) == 3  # with the first admin key

    revoke_keys_labelled(database, key_label(CLI_KEY_LABEL, settings))
    third = make_keys(settings)
    assert third.cli not in (first.cli, first.worker)
    assert principal_of(database, third.cli).scope == Scope.ADMIN
    (tmp_path / "cli.key").write_text(third.worker, encoding="utf-8")  # good, and not for this
    assert principal_of(database, make_keys(settings).cli).scope == Scope.ADMIN
    database.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_keys_are_readable_by_their_owner_alone(served: Served) -> None:
    for name in ("cli.key", "worker.key", "sign-in.txt"):
        assert (served.home / name).stat().st_mode & 0o777 == 0o600, name


def test_second_server_on_a_home_is_refused_with_the_address_of_the_first(run: Run, served: Served) -> None:
    result = run("serve", "--home", served.home, "--port", 0, "--no-worker")
    assert result.code == 2
    assert f"is in use by the server at {served.url}" in result.err
    assert "Stop that server first" in result.err


def test_second_server_on_the_same_home_and_port_is_told_of_the_home(run: Run, served: Served) -> None:
    port = served.url.rpartition(":")[2]
    result = run("serve", "--home", served.home, "--port", port, "--no-worker")
    assert result.code == 2
    assert f"is in use by the server at {served.url}" in result.err


def test_taken_port_is_exit_2_and_leaves_the_home_free(run: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run("serve", "--home", tmp_path / "home", "--port", port, "--no-worker")
    assert result.code == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in result.err
    assert "--port 0 finds a free one" in result.err
    with HomeLock(tmp_path / "home", address="me"):
        pass


# --- commands that need a server


@pytest.mark.parametrize(
    "arguments",
    [("cycle", "run"), ("cycle", "list"), ("keys", "list"), ("release", "list"), ("models", "list"), ("worker",)],
)
def test_without_a_server_the_command_says_how_to_start_one(
    run: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments, "--home", tmp_path / "empty")
    assert result.code == 1
    assert "No server has run on" in result.err
    assert "everswarm serve" in result.err
    assert result.out == ""


def test_server_that_is_gone_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"url": "http://127.0.0.1:9", "pid": 1}), encoding="utf-8")
    (tmp_path / "cli.key").write_text("esw_x", encoding="utf-8")
    result = run("cycle", "run", "--home", tmp_path)
    assert result.code == 1
    assert "The server at http://127.0.0.1:9 does not answer" in result.err
    assert "esw_x" not in result.err


def test_server_elsewhere_needs_a_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSWARM_SERVER", "http://127.0.0.1:9")
    result = run("cycle", "list")
    assert result.code == 2
    assert "EVERSWARM_KEY is not" in result.err


def test_client_of_the_home_is_not_sent_elsewhere_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setenv("EVERSWARM_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("EVERSWARM_KEY", "esw_x")
    settings = Settings(home=served.home)
    with connect(settings) as named, connect_home(settings) as at_home:
        assert (named.base_url, at_home.base_url) == ("http://127.0.0.1:9", served.url)


def test_watch_goes_on_when_the_server_comes_back_elsewhere_with_another_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = LocalServer(tmp_path / "server")
    server.start()
    server.queue()
    with server.database.transaction() as connection:
        repository.update_cycle(connection, CYCLE, state="cancelled")
    places = [("http://127.0.0.1:9", server.key), (server.url, "esw_old"), (server.url, server.key)]
    monkeypatch.setattr(cycle_command, "POLL_SECONDS", 0.01)
    assert cycle_command.watch(lambda: EverswarmClient(*places.pop(0)), CYCLE, quiet=True).state == "cancelled"
    server.close()


def test_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(supervise, "start_python_child", fail)
    monkeypatch.setattr(supervise, "FIRST_PAUSE_SECONDS", 0.01)
    worker = supervise.LocalWorker(server="http://127.0.0.1:9", key="esw_x", home=tmp_path)
    worker.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(tries) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.stop()
    assert len(tries) >= 2
    assert "Cannot allocate memory" in worker.state


def test_cycle_with_too_little_feedback_says_how_much_there_is_and_is_needed(run: Run, served: Served) -> None:
    result = run("cycle", "run", "--home", served.home, "--json")
    assert result.code != 0
    assert re.search(r"\b24\b", result.err)
    assert re.search(r"\b0\b", result.err)
    assert result.out == ""


def test_teachers_of_the_command_reach_the_server(run: Run, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def start(_client: EverswarmClient, wish: dict[str, Any]) -> None:
        asked.append(wish)
        raise UnauthorizedError("enough")

    monkeypatch.setattr(EverswarmClient, "start_cycle", start)
    teachers = ("--teacher", "weights:org/m", "--teacher", "student", "--no-hindsight", "--precision", "float16")
    run("cycle", "run", *teachers, "--teacher-template", "plain", "--home", served.home)
    run("cycle", "run", "--home", served.home)
    first, second = (TeacherSettings.model_validate(one) for one in asked[0]["teachers"])
    assert (first.name, second.name) == ("weights:org/m", "student")
    for one in (first, second):
        assert (one.hindsight, one.precision, one.template) == (False, "float16", "plain")
    assert "teachers" not in asked[1]  # the server's settings say who


def test_cycle_that_does_not_exist_is_not_found(run: Run, served: Served) -> None:
    for verb in ("show", "retry", "cancel"):
        result = run("cycle", verb, "nope", "--home", served.home)
        assert (result.code, result.err) == (1, "Not found. There is no cycle nope. List them: everswarm cycle list")


def test_json_is_all_that_goes_to_standard_output(run: Run, served: Served) -> None:
    for command in ("cycle list", "keys list", "release list", "models list", "feedback stats"):
        result = run(*command.split(), "--home", served.home, "--json")
        assert (result.code, result.err) == (0, ""), command
        assert isinstance(result.data, list | dict), command


def test_tables_are_for_people(run: Run, served: Served) -> None:
    for command, title in (("cycle list", "Cycles"), ("release list", "Releases"), ("feedback stats", "Feedback")):
        result = run(*command.split(), "--home", served.home)
        assert result.code == 0
        assert result.out.startswith(title)


# --- keys


def test_key_is_made_listed_without_its_secret_used_and_revoked(run: Run, served: Served) -> None:
    label = "[bold]ann[/] [/nothing]"  # brackets are people's own
    made = run("keys", "create", "--scope", "user", "--label", label, "--home", served.home, "--json").data
    assert (made["scope"], made["label"]) == ("user", label)
    with EverswarmClient(served.url, made["key"]) as client:
        client.cycles()

    listed = run("keys", "list", "--home", served.home, "--json")
    assert made["id"] in {key["id"] for key in listed.data}
    assert made["key"] not in listed.out
    table = run("keys", "list", "--home", served.home)
    assert label in table.out
    assert made["key"] not in table.out

    assert run("keys", "revoke", made["id"], "--home", served.home).out == f"key {made['id']} is revoked\n"
    with EverswarmClient(served.url, made["key"]) as client, pytest.raises(UnauthorizedError):
        client.cycles()


def test_key_in_words_stands_on_a_line_of_its_own(run: Run, served: Served) -> None:
    said, key = run("keys", "create", "--scope", "device", "--home", served.home).out.splitlines()
    assert said == "device key for 'device', shown this once:"
    with EverswarmClient(served.url, key) as client:
        client.cycles()


def test_key_that_does_not_exist_cannot_be_revoked(run: Run, served: Served) -> None:
    result = run("keys", "revoke", "nope", "--home", served.home)
    assert result.code == 1
    assert result.err.startswith("Not found. ")


# --- feedback


def judged(number: int, **changes: object) -> str:
    item = {
        "id": f"i{number}",
        "device_id": "phone",
        "timestamp": "2026-01-02T03:04:05Z",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "correction": "yes",
        "consent": True,
    }
    return json.dumps({**item, **changes})


def test_missing_feedback_file_is_named(run: Run, tmp_path: Path) -> None:
    result = run("feedback", "import", tmp_path / "none.jsonl", "--home", tmp_path / "home")
    assert result.code == 2
    assert "is not there" in result.err
    assert "none.jsonl" in result.err.replace(" ", "")
    assert not (tmp_path / "home").exists()


def test_broken_lines_are_told_by_number_and_the_rest_is_imported_once(run: Run, tmp_path: Path) -> None:
    file, home = tmp_path / "judged.jsonl", tmp_path / "home"
    lines = [judged(1), "{broken", judged(2), judged(3, rating=9), judged(4)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    first = run("feedback", "import", file, "--home", home)
    assert first.code == 1
    assert "5 lines read: 3 stored, 0 were there already, 2 could not be used" in first.out
    assert [int(number) for number in re.findall(r"^  line (\d+): ", first.out, re.MULTILINE)] == [2, 4]
    assert "rating" in first.out

    again = run("feedback", "import", file, "--home", home, "--json")
    assert again.code == 1
    assert (again.data["stored"], again.data["duplicates"], again.data["error_count"]) == (0, 3, 2)


def test_clean_file_is_exit_0_and_counted(run: Run, tmp_path: Path) -> None:
    file, home = tmp_path / "judged.jsonl", tmp_path / "home"
    file.write_text("\n".join(judged(number) for number in range(5)), encoding="utf-8")
    assert run("feedback", "import", file, "--home", home).code == 0
    assert 5 in run("feedback", "stats", "--home", home, "--json").data.values()


# --- worker


def test_worker_with_nothing_to_do_ends_when_told_to_work_once(served: Served) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "everswarm.cli.main", "worker", "--once", "--home", str(served.home)],
        env={**os.environ, "EVERSWARM_HOME": str(served.home)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"asks {served.url} for work" in " ".join(done.stdout.split())


def test_home_on_the_command_line_wins_over_the_variable(run: Run, tmp_path: Path) -> None:
    assert load_settings().home == tmp_path / "home"  # from the variable
    file = tmp_path / "judged.jsonl"
    file.write_text(judged(1), encoding="utf-8")
    run("feedback", "import", file, "--home", tmp_path / "other")
    assert (tmp_path / "other" / "everswarm.sqlite").exists()
    assert not (tmp_path / "home").exists()
