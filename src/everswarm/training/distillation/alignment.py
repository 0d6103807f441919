"""From texts and teachers' views in bytes to what the student's trainer needs in its own tokens.

Where teacher and student cut a text alike, a token's whole distribution is learnt (position KL). Where they cut it
differently, the shortest pieces that both have in common, the chunks, are learnt by their likelihood, and the first
token of such a chunk by its distribution. Where no teacher speaks, the text alone counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from everswarm.training.distillation.chunks import common_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everswarm.training.distillation.scored_text import ScoredText

    Number = TypeVar("Number", NDArray[np.int64], NDArray[np.float32])

LONGEST_CHUNK_TOKENS = 64  # of the student; what is cut that differently says little, and would fill a block of logits


class View(NamedTuple):
    """One teacher's view of a text, with the weight of its opinion."""

    scored: ScoredText
    student_ids: NDArray[np.int64]  # (vocabulary,), the student's token of each of the teacher's; -1: none
    first_ids: NDArray[
        np.int64
    ]  # (vocabulary,), the same at the text's start, before which a tokenizer may put a space
    weight: float  # before they are scaled to sum to 1


@dataclass(frozen=True)
class Aligned:
    """What the teachers together think of the student's tokens: `n` tokens, `k` candidates, `c` chunks."""

    top_ids: NDArray[np.int64]  # (n, k)
    top_logprobs: NDArray[np.float32]  # (n, k); -inf pads, and fills where they are silent
    tail_logprob: NDArray[np.float32]  # (n,)
    logprob: NDArray[np.float32]  # (n,), of the token itself where all cut it alike, else -inf
    chunk: NDArray[np.int64]  # (n,), which chunk it is part of; -1: none
    chunk_logprob: NDArray[np.float32]  # (c,)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Return which tokens all cut alike, (n,)."""
        return self.logprob > -float("inf")

    @property
    def first(self) -> NDArray[np.bool_]:
        """Return which tokens begin a chunk, (n,)."""
        import numpy as np

        return np.asarray((self.chunk >= 0) & (np.diff(self.chunk, prepend=-1) != 0))


def align(views: Sequence[View], student_end: NDArray[np.int32], *, ended: bool) -> Aligned:
    """Return the mean of the views in probability space over the student's tokens.

    Args:
        views: of one text, by teachers with log-probabilities.
        student_end: (tokens,), bytes at which the student's tokens of the text end, without the end of turn.
        ended: one more token of the student follows, the end of the turn.
    """
    import numpy as np

    count = len(student_end) + ended
    total = sum(view.weight for view in views)
    weights = [view.weight / total for view in views]
    text_ends = [view.scored.end[: view.scored.tokens - view.scored.ended] for view in views]
    bounds = list(common_chunks(student_end, *text_ends))
    if ended and all(view.scored.ended for view in views):  # the end of turn is a chunk of its own
        lasts = [count, *(view.scored.tokens for view in views)]
        bounds = [np.append(bound, last) for bound, last in zip(bounds, lasts, strict=True)]
        starts = [np.append(_starts(bound[:-1]), last - 1) for bound, last in zip(bounds, lasts, strict=True)]
    else:
        starts = [_starts(bound) for bound in bounds]
    lengths = [bound - start for bound, start in zip(bounds, starts, strict=True)]
    exact = np.all([length == 1 for length in lengths], axis=0)
    whole = ~exact & (lengths[0] <= LONGEST_CHUNK_TOKENS)
    top_ids, top_logprobs, tail = _mixture(views, weights, starts[1:])
    likelihood = _chunk_logprobs(views, weights, starts[1:], bounds[1:])
    chunk = np.full(count, -1)
    for number, at in enumerate(np.flatnonzero(whole)):
        chunk[starts[0][at] : bounds[0][at]] = number
    return Aligned(
        top_ids=_at(starts[0], top_ids, count, 0),
        top_logprobs=_at(starts[0], top_logprobs, count, -np.inf),
        tail_logprob=_at(starts[0], tail, count, -np.inf),
        logprob=_at(starts[0], np.where(exact, likelihood, -np.inf).astype(np.float32), count, -np.inf),
        chunk=chunk,
        chunk_logprob=likelihood[whole],
    )


def _starts(bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where chunks that end at `bounds` (chunks,) begin."""
    import numpy as np

    return np.concatenate([np.zeros(1, dtype=np.int64), bounds])[:-1]


def _at(rows: NDArray[np.int64], values: Number, count: int, fill: float) -> Number:
    """Spread `values` (rows, …) over `count` tokens."""
    import numpy as np

    spread = np.full_like(values, fill, shape=(count, *values.shape[1:]))
    spread[rows] = values
    return spread


def _chunk_logprobs(
    views: Sequence[View],
    weights: Sequence[float],
    starts: Sequence[NDArray[np.int64]],
    ends: Sequence[NDArray[np.int64]],
) -> NDArray[np.float32]:
    """Return log of the mean likelihood of each chunk (chunks,)."""
    import numpy as np

    found = []
    for view, weight, start, end in zip(views, weights, starts, ends, strict=True):
        upto = np.concatenate([[0.0], np.cumsum(view.scored.logprob, dtype=np.float64)])
        found.append(upto[end] - upto[start] + np.log(weight))
    return np.asarray(np.logaddexp.reduce(found, axis=0), dtype=np.float32)


def _mixture(
    views: Sequence[View], weights: Sequence[float], rows: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return ids and log-probabilities (rows, k) and the tail (rows,) of the mean of the teachers' distributions.

    Candidates of the same bytes are one; one that the student has no token for goes to the tail, as does what is not
    among the k most likely. Where nothing is left, the row is silent.
    """
    import numpy as np

    k = max(1, *(view.scored.top.shape[1] for view in views))
    count = len(rows[0])
    ids, mass, tail = np.zeros((count, 0), dtype=np.int64), np.zeros((count, 0)), np.zeros(count)
    for (scored, student_ids, first_ids, _), weight, row in zip(views, weights, rows, strict=True):
        top = scored.top[row]
        named = np.where(row[:, None] == 0, first_ids[top], student_ids[top])
        ids = np.hstack([ids, np.where(top >= 0, named, -1)])
        mass = np.hstack([mass, weight * np.exp(scored.top_logprob[row], dtype=np.float64)])
        tail += weight * np.exp(scored.tail_logprob[row], dtype=np.float64)
    tail += np.where(ids < 0, mass, 0.0).sum(axis=1)
    ids, mass = _merged(ids, np.where(ids < 0, 0.0, mass))
    order = np.argsort(-mass, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)
    tail += mass[:, k:].sum(axis=1)
    ids, mass = ids[:, :k], mass[:, :k]
    with np.errstate(divide="ignore"):
        silent = (mass[:, :1] <= 0) if mass.size else np.ones((count, 1), dtype=bool)
        logprobs = np.where(silent, -np.inf, np.log(mass)).astype(np.float32)
        return np.maximum(ids, 0), logprobs, np.where(silent[:, 0], -np.inf, np.log(tail)).astype(np.float32)


def _merged(ids: NDArray[np.int64], mass: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give an id that stands twice in a row all its mass at one place, and none at the other."""
    import numpy as np

    order = np.argsort(ids, axis=1, kind="stable")
    ids, mass = np.take_along_axis(ids, order, 1), np.take_along_axis(mass, order, 1)
    begins = np.ones_like(ids, dtype=bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    if begins.all():
        return ids, mass
    places = np.flatnonzero(begins)
    sums = np.add.reduceat(mass.ravel(), places)
    merged = np.zeros(mass.size)
    merged[places] = sums
    return np.where(begins, ids, -1), merged.reshape(mass.shape)
