"""The same functions beyond one machine: Ray Data reads the pieces of a snapshot wherever its cluster has room.

What is decided on narrow columns is decided here, in this process, as with any engine. The snapshot must lie where all
machines of the cluster can read it. The extra `scale` brings Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from everswarm.errors import BadRequestError, MissingExtraError
from everswarm.training.curation.engine import PIECE_BYTES, LineFunction, OnProgress, Piece, Rows, lines_of, pieces

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_kill_idle_workers_interval_ms": "0",  # to start them again costs seconds each
}


_ERROR = "error"  # a column beside those of the rows, null where a piece could be read


class RayEngine:
    """Ray Data, on the cluster that `RAY_ADDRESS` names, or on this machine where none is named."""

    def __init__(self, *, processes: int | None = None, piece_bytes: int = PIECE_BYTES) -> None:
        """`processes` on this machine, where no cluster is named; default: a core each.

        Raises:
            MissingExtraError: Ray is not installed.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("Curation with Ray", "scale") from error
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._ray = ray
        self._processes = processes
        self._piece_bytes = piece_bytes
        self._is_ours = False

    def __enter__(self) -> Self:
        """Join the cluster, or start one here."""
        if not self._ray.is_initialized():
            is_elsewhere = bool(os.environ.get("RAY_ADDRESS"))
            options: dict[str, Any] = {} if is_elsewhere else {"num_cpus": self._processes, "include_dashboard": False}
            self._ray.init(log_to_driver=False, logging_level="ERROR", **options)
            self._is_ours = True
        logging.getLogger("ray.data").setLevel(logging.WARNING)  # `init` has set it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the cluster, or stop the one that was started here."""
        if self._is_ours:
            self._ray.shutdown()
            self._is_ours = False

    def apply(self, function: LineFunction, path: Path, *, on_progress: OnProgress) -> Rows:
        """Return the rows that `function` makes of the lines of `path`, in the order of the lines.

        Raises:
            BadRequestError: the first that `function` raised, in the order of the lines.
        """
        from ray.data import DataContext, from_items

        context = DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        where = path.resolve()

        def make(batch: dict[str, Any]) -> Any:
            start, end, number = (int(batch[name][0]) for name in Piece._fields)
            try:
                rows = function(lines_of(where, Piece(start, end, number)), number)
                marked = rows.with_columns(pl.lit(None, pl.String).alias(_ERROR))
            except BadRequestError as error:  # Ray would tell its own error, and lose this one
                marked = function([], number).clear(1).with_columns(pl.lit(str(error)).alias(_ERROR))
            return marked.to_arrow(compat_level=_PLAIN)

        wanted = [piece._asdict() for piece in pieces(where, self._piece_bytes)]
        made = from_items(wanted, override_num_blocks=len(wanted)).map_batches(make, batch_size=1).materialize()
        rows = RayRows(made)
        if errors := [text for batch in rows.batches([_ERROR]) for text in batch[_ERROR].drop_nulls()]:
            raise BadRequestError(errors[0])
        size = path.stat().st_size
        on_progress(size, size)
        return rows


class RayRows:
    """Rows in the object store of a cluster."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def columns(self, names: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows."""
        return pl.concat(self.batches(names))

    def batches(self, names: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield some columns of all rows, block by block."""
        chosen = self._dataset.select_columns(list(names))
        for block in chosen.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield pl.DataFrame(pl.from_arrow(block))


_PLAIN = pl.CompatLevel.oldest()  # types that every Arrow library knows
