"""How good an answer is: exactly right or not where answers can be compared, else how many words it shares. Pure."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from everswarm.server.swarm.comparing import agree, comparable, is_comparable, read_choices
from everswarm.server.swarm.evaluation_files import Prompt

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"-?\d+(?:/\d+)?%?", re.ASCII)  # as `comparable` writes one
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Scored(NamedTuple):
    """The quality of one answer, 0 to 1, and whether it was compared exactly."""

    quality: float
    is_exact: bool


Score = Callable[[Prompt, str], Scored]


def score(prompt: Prompt, answer: str) -> Scored:
    """Return how good `answer` is against the best of the references."""
    found = [_against(prompt, reference, answer) for reference in prompt.references]
    return max(found, key=lambda scored: scored.quality)


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the words of `answer` against those of `reference`, 0 to 1.

    As SQuAD's evaluation script has it (Rajpurkar et al. 2016, section 6.1): lower case, without punctuation and
    English articles, words counted as often as both have them. Two texts without words are the same.
    """
    said, wanted = _words(answer), _words(reference)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))  # 2PR/(P+R) with P = shared/said, R = shared/wanted


def _against(prompt: Prompt, reference: str, answer: str) -> Scored:
    choices = read_choices(prompt.question)
    wanted = comparable(reference, kind=prompt.kind, choices=choices)
    if wanted is None or not _is_exact(wanted, prompt, choices):
        return Scored(token_f1(answer, reference), False)
    given = comparable(answer, kind=prompt.kind, choices=choices)
    if given is None and _NUMBER.fullmatch(wanted):
        given = comparable(answer, kind="mathematics")  # the number that a sentence ends with
    return Scored(float(given is not None and agree(given, wanted)), True)


def _is_exact(wanted: str, prompt: Prompt, choices: tuple[str, ...]) -> bool:
    """A few words may be said in a whole sentence, unless the question wants them alone."""
    is_form = wanted in choices or wanted in ("yes", "no") or wanted[0] in "{[" or _NUMBER.fullmatch(wanted)
    return bool(is_form) or is_comparable(prompt.question, prompt.kind)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
