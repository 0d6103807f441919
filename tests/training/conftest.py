"""A tiny random student with a tokenizer of its own, in the shape of a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from examples.tiny_student import make_tiny_student

from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random float32 weights (two layers, 32 wide) and a byte-level BPE tokenizer."""
    return make_tiny_student(tmp_path_factory.mktemp("tiny-student"))


@pytest.fixture(scope="session")
def make_examples() -> Callable[[int], list[Example]]:
    """Return a maker of `n` short training examples, all different."""

    def make(count: int) -> list[Example]:
        return [
            Example(
                id=f"example-{number}",
                user="ada",
                split="train",
                messages=[Message(role="user", content=f"How many metres are {number} km?")],
                target=f"{number} km are {number * 1000} m.",
                source="correction",
            )
            for number in range(1, count + 1)
        ]

    return make
