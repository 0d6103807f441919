"""Where tokenizers agree: the common chunks of several token sequences of one text. Knows only where tokens end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def common_chunks(*ends: NDArray[np.int32]) -> tuple[NDArray[np.int64], ...]:
    """Return, for each token sequence of one text, behind which of its tokens each common chunk ends.

    A chunk ends at every byte at which all the sequences have a token end, so no chunk can be cut into smaller ones,
    and chunk `c` of a sequence is its tokens `result[c - 1]` to `result[c]`, exclusive, the first one's from 0.
    A token without bytes (a space put in front of the text) belongs to the first chunk that ends at or behind it. What
    follows the last common end is in no chunk. Takes time in proportion to the bytes and tokens.

    Args:
        ends: one array a sequence, (tokens,): the byte behind each token, as `token_ends` gives; must not fall.

    Returns:
        One array a sequence, (chunks,); all of the same length.
    """
    import numpy as np

    if any(len(end) == 0 for end in ends):
        return tuple(np.zeros(0, dtype=np.int64) for _ in ends)
    sequences_ending = np.zeros(max(int(end[-1]) for end in ends) + 1, dtype=np.int32)
    last_at_end = [np.append(end[1:] != end[:-1], True) for end in ends]  # tokens without bytes share their end
    for end, last in zip(ends, last_at_end, strict=True):
        sequences_ending[end[last]] += 1
    agreed = sequences_ending == len(ends)
    return tuple(np.flatnonzero(agreed[end] & last) + 1 for end, last in zip(ends, last_at_end, strict=True))
