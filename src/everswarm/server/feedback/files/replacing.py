"""Writing a file or a folder whole or not at all: beside its place first, then moved there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from everswarm.errors import BadRequestError

CARD_NAME, DATA_NAME = "README.md", "data"  # all that a folder of ours holds


@contextmanager
def written_file(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield where to write; when the block ends well it becomes `target`, which only its owner may read.

    Raises:
        BadRequestError: `target` is there and `force` is not set, or its folder is not there.
    """
    if target.is_dir():
        raise BadRequestError(f"{target} is a folder. Name a file in it.")
    if target.exists() and not force:
        raise BadRequestError(f"{target} is there already. Name another file, or replace it with --force.")
    _require_folder(target)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # 0600: it holds people's words
    os.close(descriptor)
    try:
        yield Path(name)
        _sync(Path(name))
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def written_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield the folder to write into; when the block ends well it becomes `target`.

    Raises:
        BadRequestError: `target` holds something and `force` is not set, or something that is not of an export.
    """
    if target.exists() and not target.is_dir():
        raise BadRequestError(f"{target} is a file. Name a folder that is not there yet.")
    held = {path.name for path in target.iterdir()} if target.exists() else set()
    if held and not force:
        raise BadRequestError(
            f"{target} is not empty. Name another folder, or empty it; export replaces one with --force."
        )
    if held - {CARD_NAME, DATA_NAME}:
        other = sorted(held - {CARD_NAME, DATA_NAME})[0]
        raise BadRequestError(
            f"{target} holds {other!r}, which no export wrote, and would be lost. Name a folder that is not there yet."
        )
    _require_folder(target)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        (made / "new").mkdir(mode=0o700)
        yield made / "new"
        for path in (made / "new").rglob("*"):
            if path.is_file():
                _sync(path)
        if target.exists():
            target.replace(made / "old")
        (made / "new").replace(target)
    finally:
        if (made / "old").exists() and not target.exists():
            (made / "old").replace(target)
        shutil.rmtree(made, ignore_errors=True)


def _require_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise BadRequestError(f"The folder {target.parent} is not there. Make it first: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise BadRequestError(f"The folder {target.parent} may not be written. Name a place of your own.")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
