"""What every teacher is to the labelling loop. Knows no model and no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import Teacher, TextSource
from everswarm.training.distillation.scored_text import ScoredText


class Text(NamedTuple):
    """What a teacher is shown."""

    example: Example
    completion: str
    source: TextSource  # "target" or "rollout"


class TeacherAtWork(Protocol):
    """A teacher that is loaded, or whose server is known."""

    @property
    def scores_given_text(self) -> bool:
        """False: it writes its own answers to the questions of the texts, and roll-outs are left out."""

    @property
    def top_k(self) -> int:
        """Return how many candidates it gives a token."""

    def label(
        self, texts: Sequence[Text], *, batch: str | None, on_batch: Callable[[str], None]
    ) -> Iterator[ScoredText]:
        """Yield what it thinks of each text, in order.

        Args:
            texts: of one shard.
            batch: what an earlier try asked for these very texts. Local teachers need none.
            on_batch: remembers a new one.
        """

    def close(self) -> None:
        """Give memory and connections back; it is not asked again."""


class TeacherToOpen(NamedTuple):
    """A teacher whose record is known before anything is loaded."""

    teacher: Teacher
    open: Callable[[], TeacherAtWork]
