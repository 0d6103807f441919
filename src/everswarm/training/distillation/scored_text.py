"""What a teacher thought of one text. The form that every teacher gives and every cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everswarm.schemas.targets import TextSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

END_OF_TURN = b""  # among the candidates; each tokenizer has its own name for it


@dataclass(frozen=True)
class ScoredText:
    """One text in the teacher's tokens, by bytes: token `i` ends at byte `end[i]` and begins where the last one ended.

    With `ended` one more token follows those of the text: the end of the turn, with `end` = the text's length.
    Without log-probabilities (text only) all arrays are empty. Log-probabilities are natural logarithms.
    """

    id: str  # of the example
    source: TextSource
    text: bytes
    ended: bool
    end: NDArray[np.int32]  # (tokens,), not falling
    logprob: NDArray[np.float32]  # (tokens,), of the text's own token
    vocabulary: Sequence[bytes]  # what `top` counts in; may be shared by many texts
    top: NDArray[np.int32]  # (tokens, k), by falling probability; -1 pads
    top_logprob: NDArray[np.float32]  # (tokens, k); -inf pads
    tail_logprob: NDArray[np.float32]  # (tokens,), of everything not among the k; -inf where the k are everything

    @property
    def tokens(self) -> int:
        """Return how many tokens have log-probabilities."""
        return len(self.end)

    @property
    def top_k_mass(self) -> float:
        """Return the probability inside the k, summed over the tokens."""
        import numpy as np

        return float(np.exp(self.top_logprob.astype(np.float64)).sum())
