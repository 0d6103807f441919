"""The words for what a request is about, and for how several models answer it."""

from __future__ import annotations

from typing import Literal, get_args

from everswarm.settings import KINDS, STRATEGIES

Kind = Literal[
    "arithmetic",  # the whole of it is one sum, which the calculator answers
    "mathematics",  # a problem whose answer is a number
    "code",
    "planning",
    "parts",  # several questions at once
    "time",  # the date, the time
    "documents",  # what stands in the user's own documents
    "tools",  # something that a configured tool is for
    "conversation",  # small talk
    "other",
]
StrategyName = Literal["calculate", "single", "cascade", "vote", "split", "synthesise"]

if get_args(Kind) != KINDS or get_args(StrategyName) != STRATEGIES:  # the settings cannot import from here
    raise AssertionError("the words of the settings and those of the swarm differ")
