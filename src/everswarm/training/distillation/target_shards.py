"""One shard of soft targets as a parquet file, and back. Knows nothing of tokenizers or models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import FULL_DISK, no_space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

END_OF_TURN = b""  # among the candidates, as its empty span among the tokens; each tokenizer has its own name for it


@dataclass(frozen=True)
class ScoredText:
    """What the teacher thought of one text, token by token."""

    id: str
    text: bytes
    start: list[int]
    end: list[int]
    logprob: NDArray[np.float32]  # (tokens,)
    top_bytes: list[list[bytes]]  # (tokens, k), by falling probability
    top_logprob: NDArray[np.float32]  # (tokens, k)
    tail_logprob: NDArray[np.float32]  # (tokens,), -inf where the k are everything

    @property
    def top_k_mass(self) -> float:
        """Return the probability inside the k, summed over the tokens."""
        import numpy as np

        return float(np.exp(self.top_logprob.astype(np.float64)).sum())


def write_shard(texts: Sequence[ScoredText], path: Path) -> None:
    """Write `texts` to `path`; the same texts give the same bytes.

    Log-probabilities are kept in 16 bits: their relative error is at most 2^-11, so a probability of 0.5 is off by
    0.03 % and one of 1e-6 by 0.7 %.

    Raises:
        NoSpaceError: the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pa.Table.from_pylist([_row(text) for text in texts], schema=_schema())
        pq.write_table(table, path, compression="zstd", compression_level=3, write_statistics=False)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in FULL_DISK:
            raise no_space(path.parent) from error
        raise


def read_shards(paths: Sequence[Path]) -> Iterator[ScoredText]:
    """Yield the texts of `paths` in order.

    Raises:
        StageFailedError: a file is not a shard of soft targets.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            rows = pq.read_table(path).cast(_schema()).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise StageFailedError(f"{path.name} is not a shard of soft targets: {error}. Label again.") from error
        for row in rows:
            for column in ("logprob", "top_logprob", "tail_logprob"):
                row[column] = np.asarray(row[column], dtype=np.float32)
            yield ScoredText(**row)


def _row(text: ScoredText) -> dict[str, Any]:
    import numpy as np

    halved = {
        "logprob": list(text.logprob.astype(np.float16)),
        "top_logprob": [list(row) for row in text.top_logprob.astype(np.float16)],
        "tail_logprob": list(text.tail_logprob.astype(np.float16)),
    }
    return {
        "id": text.id,
        "text": text.text,
        "start": text.start,
        "end": text.end,
        "top_bytes": text.top_bytes,
    } | halved


def _schema() -> Any:
    import pyarrow as pa

    half = pa.list_(pa.float16())
    return pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.binary()),
            ("start", pa.list_(pa.int32())),
            ("end", pa.list_(pa.int32())),
            ("logprob", half),
            ("top_bytes", pa.list_(pa.list_(pa.binary()))),
            ("top_logprob", pa.list_(half)),
            ("tail_logprob", half),
        ]
    )
