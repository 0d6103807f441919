"""Check that the environment is the one that the lock describes; run by `make setup`.

Takes the lock's path. Knows nothing about torch's version, which is apart from the lock.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

NOT_LOCKED = {"presidio", "scale"}  # extras that `make setup` leaves out: few need them, and they are large


def locked(lock: Path) -> Iterator[Requirement]:
    """Yield the requirements of `lock` that apply to this Python and this system."""
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in " #":
            requirement = Requirement(line.removesuffix("\\").split(" #")[0])
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def declared(package: str) -> Iterator[Requirement]:
    """Yield what `package` asks for, with every extra that is locked."""
    extras = {"", *(metadata.metadata(package).get_all("Provides-Extra") or [])} - NOT_LOCKED
    for requirement in map(Requirement, metadata.requires(package) or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def problem(requirement: Requirement) -> str | None:
    """Return what is wrong with the installed copy, if anything."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed, {requirement.specifier} was asked for"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found}, {requirement.specifier} was asked for"
    return None


def main(lock: Path) -> int:
    """Print what differs and return the exit code."""
    wrong = [f"{lock}: {text}" for text in map(problem, locked(lock)) if text]
    wrong += [f"pyproject.toml: {text}" for text in map(problem, declared("everswarm")) if text]
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print("The environment differs from the lock. Try `make clean setup`; after a change of", file=sys.stderr)
        print("pyproject.toml, `make lock` first.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
