"""What the documents name exists: commands, options, make targets, settings, routes, links; their code compiles."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from everswarm.cli.main import app
from everswarm.schemas.interaction import JudgedInteraction
from everswarm.server.app import create_app
from everswarm.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if "plans" not in path.relative_to(ROOT).parts
)
GUIDES = ("batches", "chat-with-any-client", "cli", "devices", "endpoints", "feedback", "operations", "teachers")
VARIABLES_OF_COMMANDS = {
    "EVERSWARM_SERVER",
    "EVERSWARM_KEY",
    "EVERSWARM_CONFIG",
    "EVERSWARM_DEVICE_HOME",
    "EVERSWARM_TEXT_KEY",
    "EVERSWARM_TEACHER_KEY",
}  # no settings: read by commands, or a secret


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(path: Path, *languages: str) -> Iterator[str]:
    """Yield the fenced blocks in one of `languages`."""
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text_of(path), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield body


def prose(path: Path) -> str:
    """Return the text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(path), flags=re.MULTILINE | re.DOTALL)


def shell_lines(path: Path) -> Iterator[str]:
    """Yield what a reader may type: inline code, and the lines of shell blocks."""
    yield from re.findall(r"`([^`\n]+)`", prose(path))
    for block in blocks(path, "sh"):
        yield from block.replace("\\\n", " ").splitlines()


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words after `everswarm` of each mention of the command."""
    for line in shell_lines(path):
        match = re.match(r"(?:[A-Z_]+=(?:'[^']*'|\S*) )*(?:\.venv/bin/)?everswarm (.+)", line)
        if match:
            yield shlex.split(match.group(1).replace("…", "x"), comments=True)


def why_wrong(words: list[str]) -> str | None:
    """Return what is wrong with a mention of the command, or None."""
    command: Any = get_command(app)
    for place, word in enumerate(words):
        children = getattr(command, "commands", None)
        if children is None:
            known = {"--help", *(option for item in command.params for option in [*item.opts, *item.secondary_opts])}
            unknown = [option for option in words[place:] if option.startswith("--") and option not in known]
            return f"no option {unknown[0]}" if unknown else None
        if word.startswith("--"):
            return None if word in {"--help", "--version"} else f"no option {word}"
        if word not in children:
            return f"no command {word}"
        command = children[word]
    return None


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def setting_variables(model: type[BaseModel], prefix: str = "EVERSWARM_") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_variables(field.annotation, f"{prefix}{name.upper()}__")


def reference_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli_reference", ROOT / "docs" / "make_cli_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_guides_are_there() -> None:
    assert {path.stem for path in (ROOT / "docs" / "guides").glob("*.md")} >= set(GUIDES)


def test_readme_begins_with_the_two_commands() -> None:
    readme = text_of(ROOT / "README.md")
    first = next(blocks(ROOT / "README.md", "sh"))
    assert "make demo" in first
    assert "make test" in first
    assert readme.count("<!-- demo:start -->") == readme.count("<!-- demo:end -->") == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    wrong = {" ".join(words): why for words in commands(path) if (why := why_wrong(words))}
    assert not wrong, wrong


def test_mentions_of_commands_are_found() -> None:
    found = [" ".join(words) for words in commands(ROOT / "README.md")]
    assert {"serve", "cycle run", "feedback import judged.jsonl", "device sync"} <= set(found)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("cycle walk", "no command walk"),
        ("swim", "no command swim"),
        ("cycle run --fast", "no option --fast"),
        ("device", None),
        ("cycle run --no-wait", None),
    ],
)
def test_wrong_mentions_are_noticed(words: str, why: str | None) -> None:
    assert why_wrong(words.split()) == why


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    named = {match.group(1) for line in shell_lines(path) if (match := re.match(r"make ([a-z]+)\b", line))}
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_within_the_repository_resolve(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in {slug(line) for line in headings(target)}):
            broken.append(link)
    assert not broken


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_are_valid(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, path.name, "exec")
    for block in blocks(path, "toml"):
        Settings.model_validate(tomllib.loads(block))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_variables_are_settings(path: Path) -> None:
    known = set(setting_variables(Settings)) | VARIABLES_OF_COMMANDS
    assert set(re.findall(r"\bEVERSWARM_[A-Z_]*[A-Z]\b", text_of(path))) <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_routes_exist(path: Path, tmp_path: Path) -> None:
    paths = create_app(Settings(home=tmp_path)).openapi()["paths"]
    patterns = [re.compile(re.sub(r"\{[^}]+\}", "[^/]+", route)) for route in paths]
    named = set(re.findall(r"(?<=[ `A-Z\d])/(?:api|v1)/[\w/…-]+", text_of(path)))
    assert not [route for route in named if not any(pattern.fullmatch(route.rstrip("/")) for pattern in patterns)]


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "guides" / "feedback.md"], ids=lambda p: p.name)
def test_import_example_is_an_interaction(path: Path) -> None:
    examples = [block for block in blocks(path, "json") if block.startswith('{"id":') and "device_id" in block]
    assert examples
    for example in examples:
        assert JudgedInteraction.model_validate_json(example).consent


def test_command_reference_is_that_of_the_commands() -> None:
    written = text_of(ROOT / "docs" / "guides" / "cli.md")
    assert written == reference_script().reference(), "run: python docs/make_cli_reference.py"
