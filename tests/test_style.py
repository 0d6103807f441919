"""What the linters do not see: sizes, file names, public doors, and texts that belong to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT_LINES = 500
VAGUE_NAMES = {"common", "helper", "helpers", "manager", "misc", "util", "utils"}
GENERATED = {
    "CHANGELOG.md",
    "LICENSE",
    "requirements/lock.txt",
    "requirements/build.txt",
    "requirements/scale.txt",
    "docs/guides/cli.md",
}
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w./\-*}])(?:/(?:work|tmp|root)/\w|/home/\w|/Users/\w|C:\\Users)"),
    "an address of a package index": re.compile(r"https?://[^\s/]+/(?:simple|whl)\b|\bfiles\.pythonhosted\b"),
    "a secret": re.compile(r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9]{32,}|gh[pousr]_[A-Za-z0-9]{30,})\b"),
    "a merge left open": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
    "a note to ourselves": re.compile(r"\b(?:TODO|FIXME)\b"),
}


@cache
def repository_texts() -> dict[str, str]:
    """The text files that git has or would take, by their path."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip(f"git cannot list the files here: {listed.stderr.strip()}")
    texts: dict[str, str] = {}
    for name in sorted(set(filter(None, listed.stdout.split("\0")))):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes())[:8192]:
            texts[name] = content.decode("utf-8")
    return texts


def python_modules() -> Iterator[tuple[str, ast.Module]]:
    for name, text in repository_texts().items():
        if name.endswith(".py"):
            yield name, ast.parse(text, name)


def bound_names(module: ast.Module) -> Iterator[str]:
    """Yield the public names that a package door defines or takes from everswarm."""
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("everswarm")):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def declared_door(module: ast.Module) -> list[str] | None:
    """Return `__all__`, if the module has one."""
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def test_files_stay_small() -> None:
    lines = {
        name: text.count("\n")
        for name, text in repository_texts().items()
        if Path(name).suffix in {".py", ".md", ".ts", ".tsx", ".js", ".css", ".html", ".kt"}
        and name not in GENERATED
        and "/migrations/versions/" not in name  # one statement a table and index
    }
    too_long = {name: count for name, count in lines.items() if count > LIMIT_LINES}
    assert not too_long, f"over {LIMIT_LINES} lines; look for the second idea inside: {too_long}"


def test_file_names_say_an_idea() -> None:
    vague = [name for name in repository_texts() if {Path(name).stem, *Path(name).parent.parts} & VAGUE_NAMES]
    assert not vague, f"name the idea: {vague}"


def test_package_doors_list_all_their_public_names() -> None:
    wrong = {}
    for name, module in python_modules():
        door = declared_door(module) if name.endswith("__init__.py") else None
        if door is not None:
            public = {bound for bound in bound_names(module) if not bound.startswith("_")}
            if difference := public.symmetric_difference(door) - {"__version__"}:
                wrong[name] = sorted(difference)
    assert not wrong, f"in __all__ or in the package, but not in both: {wrong}"


def test_packages_say_what_they_are() -> None:
    silent = [
        name
        for name, module in python_modules()
        if name.startswith("src/") and not ast.get_docstring(module) and module.body
    ]
    assert not silent, f"no docstring: {silent}"


def test_texts_belong_to_no_machine() -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()}"
        for name, text in repository_texts().items()
        for what, pattern in FORBIDDEN.items()
        for match in pattern.finditer(text)
        if name != "tests/test_style.py"
    ]
    assert not found, "\n".join(found)


def test_lock_names_no_address() -> None:
    named = [
        name
        for name, text in repository_texts().items()
        if name.startswith("requirements/") and re.search(r"://|^-{1,2}(?:i|f|index|extra|find)", text, re.MULTILINE)
    ]
    assert not named, f"a lock works with any package index: {named}"


def test_lock_pins_everything_but_torch() -> None:
    lock = repository_texts()["requirements/lock.txt"]
    pins = re.findall(r"^([a-z0-9-]+)(\S*)", lock, re.MULTILINE)
    assert all(version.startswith("==") for _, version in pins)
    assert not {name for name, _ in pins if re.match(r"torch$|nvidia-|triton$|cuda-", name)}
    assert lock.count("\n    --hash=sha256:") >= len(pins)
