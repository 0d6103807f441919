"""How many tokens one answer may cost: what its strategy declared before it began. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

LEAST_ANSWER_TOKENS = 8  # less than that is no answer


class OverBudgetError(Exception):
    """A call does not fit into what is left; the strategy goes on without it."""


class Size(NamedTuple):
    """Of one plain call: tokens of the prompt (an upper estimate) and of the longest answer."""

    prompt_tokens: int
    answer_tokens: int

    @property
    def total(self) -> int:
        """Both."""
        return self.prompt_tokens + self.answer_tokens


class Planned(NamedTuple):
    """One call that a strategy may make, at worst."""

    role: str
    tokens: int


class Budget:
    """Tokens that one answer may still spend."""

    def __init__(self, tokens: int) -> None:
        self.left_tokens = tokens

    def take(self, prompt_tokens: int, answer_tokens: int) -> Size:
        """Set a call aside, with a shorter answer where the whole does not fit.

        Raises:
            OverBudgetError: not even the shortest answer fits.
        """
        least_tokens = min(answer_tokens, LEAST_ANSWER_TOKENS)
        answer_tokens = min(answer_tokens, self.left_tokens - prompt_tokens)
        if answer_tokens < least_tokens:
            raise OverBudgetError(
                f"a call of {prompt_tokens} tokens and an answer does not fit into the {self.left_tokens} that are left"
            )
        taken = Size(prompt_tokens, answer_tokens)
        self.left_tokens -= taken.total
        return taken

    @contextmanager
    def keep(self, tokens: int) -> Iterator[None]:
        """Leave `tokens` alone meanwhile, for a call that has to come after those that are made now."""
        self.left_tokens -= tokens
        try:
            yield
        finally:
            self.left_tokens += tokens

    def settle(self, taken: Size, used_tokens: int | None) -> None:
        """Give back what a call did not use; where it did not say, all of it counts as used."""
        if used_tokens is not None:
            self.left_tokens += taken.total - used_tokens
