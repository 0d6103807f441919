"""Where a function is applied to the lines of a snapshot: here, in processes beside this one, or by `ray_engine`.

An engine knows nothing of curation: it cuts a file at line ends, applies a function to each piece, and gives the
rows back in the order of the file. Whatever the engine and the size of the pieces, the rows are the same.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import polars as pl

from everswarm.settings import CurationSettings

PIECE_BYTES = 8 << 20  # of a snapshot; its words and fingerprints take about ten times as much while they are made
MOST_PROCESSES = 4  # where nobody says how many

LineFunction = Callable[[Sequence[bytes], int], pl.DataFrame]  # lines, number of the first → rows
OnProgress = Callable[[int, int], None]  # bytes done, of so many


class Piece(NamedTuple):
    """Whole lines of a file."""

    start: int  # byte
    end: int
    first_number: int  # of its first line, from 1


class Rows(Protocol):
    """Rows that may be more than fit into memory, in a fixed order."""

    def columns(self, names: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows."""

    def batches(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield some columns of all rows, batch by batch."""


class Engine(Protocol):
    """Applies a function to the lines of a file. Used as a context: what it has made is gone afterwards."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clean up."""

    def apply(self, function: LineFunction, path: Path, *, on_progress: OnProgress) -> Rows:
        """Return the rows that `function` makes of the lines of `path`, in the order of the lines."""


class LocalEngine:
    """This machine: one process, or several where the file is long enough to be worth it."""

    def __init__(self, *, processes: int = 1, piece_bytes: int = PIECE_BYTES) -> None:
        """`processes` side by side, 0 for a core each; each takes `piece_bytes` of the file at a time."""
        self._processes = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
        self._piece_bytes = piece_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="everswarm-curate-")

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the files."""
        self._folder.cleanup()

    def apply(self, function: LineFunction, path: Path, *, on_progress: OnProgress) -> Rows:
        """Return the rows that `function` makes of the lines of `path`, in the order of the lines."""
        total = path.stat().st_size
        made = []
        for piece, out in self._apply(
            partial(_make, function, path, Path(self._folder.name)), pieces(path, self._piece_bytes)
        ):
            made.append(out)
            on_progress(piece.end, total)
        return FileRows(made)

    def _apply(self, make: Callable[[Piece], Path], wanted: Sequence[Piece]) -> Iterator[tuple[Piece, Path]]:
        processes = min(self._processes, len(wanted))
        if processes < 2:
            yield from ((piece, make(piece)) for piece in wanted)
            return
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads of Polars half-way
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_with_parent) as pool:
            waiting: list[tuple[Piece, Future[Path]]] = [(piece, pool.submit(make, piece)) for piece in wanted]
            try:
                for piece, future in waiting:
                    yield piece, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()


def engine_of(settings: CurationSettings) -> Engine:
    """Return the engine that the settings name.

    Raises:
        MissingExtraError: it is Ray, which is not installed.
    """
    if settings.engine == "ray":
        from everswarm.training.curation.ray_engine import RayEngine

        return RayEngine(processes=settings.processes or None)
    return LocalEngine(processes=settings.processes)


class FileRows:
    """Rows in Arrow files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files

    def columns(self, names: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows."""
        return pl.concat(self.batches(names))

    def batches(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield some columns of all rows, file by file."""
        for file in self._files:
            yield pl.read_ipc(file, columns=list(names))


def pieces(path: Path, piece_bytes: int) -> list[Piece]:
    """Cut a file into pieces of about `piece_bytes` that end where a line ends; at least one."""
    found, start, number = [], 0, 1
    with path.open("rb") as file:
        while block := file.read(piece_bytes):
            block += file.readline()
            found.append(Piece(start, start + len(block), number))
            start += len(block)
            number += block.count(b"\n")
    return found or [Piece(0, 0, 1)]


def lines_of(path: Path, piece: Piece) -> list[bytes]:
    """Return the lines of a piece, without their ends."""
    with path.open("rb") as file:
        file.seek(piece.start)
        return file.read(piece.end - piece.start).split(b"\n")


def _make(function: LineFunction, path: Path, folder: Path, piece: Piece) -> Path:
    out = folder / f"{piece.start:016d}.arrow"
    function(lines_of(path, piece), piece.first_number).write_ipc(out)
    return out


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def quietly(done: int, total: int) -> None:
    """Tell nobody."""
