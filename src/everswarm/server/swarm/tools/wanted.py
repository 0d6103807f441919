"""Which tools a question seems to want, without asking a model: words that it shares with their names and descriptions.

Gives a choice to offer to the model, never a call. It knows nothing of meaning: 'rain' does not find 'weather'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from everswarm.server.swarm.tools.tool import Tool

READ_CHARACTERS = 2000  # at either end of a question
LONG_QUESTION_WORDS = 60  # different ones: so many share a word or two with any description
NAME_WEIGHT = 3.0  # of a word in a tool's name, where one in its description weighs 1
_WORD = re.compile(r"[^\W\d_]{3,}")
SHORTEST_TOLD = 4  # letters of a word of a description; names have short ones that mean something: `add`, `git`
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_STOP_WORDS = frozenset(
    _WORD.findall(
        """the and for are was has can did how who why you not all any new get set put run use let its his her our
    out off
    und der die das den dem des ein ist sie wie was wer mir mit von vom zum zur auf aus bei für les des est une que por
    about after again also another answer anything because been before being best between both call called came
    come could data does doing done each either else ever every example explain find first from gets give given
    goes going good have having hello help here into item just know last less like line list long look made make making
    many maybe mean more most much must name need never next once only other over part please question read result
    return returned returning same server show since some something specified still such take tell text than thank that
    their them then there these they thing this those three time tool type used user using value very want well were
    what when where which while will with within without word would write your
    aber alle auch beim bitte dann dass dein denn dies diese dieser doch eine einem einen einer eines etwas gibt haben
    hallo hier ihre kann kannst kein keine mach mein meine mich muss nach nicht noch oder schon sein sich sind über
    viel viele wann warum welche wenn werden wird worden wurde zwischen"""
    )
)


class _Words(NamedTuple):
    name: frozenset[str]
    every: frozenset[str]  # those of the description too


class WordIndex:
    """The words of some tools, read once for many questions."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = [
            (
                tool,
                _Words(
                    name=(name := _words(_HUMP.sub(" ", _own_name(tool)))),
                    every=name | {word for word in _words(tool.description) if len(word) >= SHORTEST_TOLD},
                ),
            )
            for tool in tools
        ]
        counts: dict[str, int] = {}
        for _tool, words in self._tools:
            for word in words.every:
                counts[word] = counts.get(word, 0) + 1
        self._rarity: Mapping[str, float] = {
            word: math.log(1 + len(self._tools) / count) for word, count in counts.items()
        }

    def best(self, text: str, *, most: int) -> list[Tool]:
        """Return at most `most` tools, the likeliest first; none where no more than one common word is shared."""
        if not self._tools:
            return []
        if len(text) > 2 * READ_CHARACTERS:  # what is asked stands before or after what was pasted
            text = f"{text[:READ_CHARACTERS]} {text[-READ_CHARACTERS:]}"
        asked = _words(text)
        shared = asked & self._rarity.keys()
        if not shared:
            return []
        scored = [
            (score, -place, tool)
            for place, (tool, words) in enumerate(self._tools)
            if (score := self._score(shared, words, long=len(asked) > LONG_QUESTION_WORDS))
        ]
        return [tool for _score, _place, tool in sorted(scored, key=lambda one: one[:2], reverse=True)[:most]]

    def _score(self, shared: frozenset[str], words: _Words, *, long: bool) -> float:
        named, told = shared & words.name, shared & words.every
        if not named and (long or len(told) < 2):
            return 0.0
        return sum(self._rarity[word] * (NAME_WEIGHT if word in named else 1.0) for word in told)


def _own_name(tool: Tool) -> str:
    """The name that the server gave: the server's own name says nothing about the one tool."""
    return tool.name.split("__", 1)[-1].replace("_", " ").replace("-", " ")


def _words(text: str) -> frozenset[str]:
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    """Take a plural's ending off: 'cities' and 'city', 'forecasts' and 'forecast' are one word."""
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 4:
        return word[:-1]
    return word
