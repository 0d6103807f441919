"""The label cache: bytes on disk a token, and how fast shards are written and read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from everswarm.schemas.targets import Teacher
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.target_shards import read_shards, write_shard

SHARD_EXAMPLES = 32  # as the label stage cuts them
ROUNDS = 5  # the best counts: another program may have been at work


class CacheSpeed(NamedTuple):
    """Tokens per CPU-second of one core, compression and checks included."""

    written: float
    read: float


def bytes_per_token(texts: Sequence[ScoredText], teacher: Teacher, folder: Path) -> float:
    """Write `texts` to shards in `folder` and return their size on disk for each token that has log-probabilities."""
    size_bytes = sum(path.stat().st_size for path in write_shards(texts, teacher, folder))
    return size_bytes / sum(text.tokens for text in texts)


def tokens_per_cpu_second(texts: Sequence[ScoredText], teacher: Teacher, folder: Path) -> CacheSpeed:
    """Write `texts` to shards in `folder` and read them again, the best of five rounds."""
    tokens = sum(text.tokens for text in texts)
    write_seconds, read_seconds = [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        paths = write_shards(texts, teacher, folder)
        written = time.process_time()
        if sum(text.tokens for text in read_shards(paths, teacher=teacher)) != tokens:
            raise RuntimeError("the cache lost tokens")
        write_seconds.append(written - began)
        read_seconds.append(time.process_time() - written)
    return CacheSpeed(written=tokens / min(write_seconds), read=tokens / min(read_seconds))


def write_shards(texts: Sequence[ScoredText], teacher: Teacher, folder: Path) -> list[Path]:
    """Write `texts` to `folder` in shards and return where they are, in order."""
    paths = []
    for start in range(0, len(texts), SHARD_EXAMPLES):
        paths.append(folder / f"shard-{start // SHARD_EXAMPLES:04d}.parquet")
        write_shard(texts[start : start + SHARD_EXAMPLES], paths[-1], teacher=teacher)
    return paths
