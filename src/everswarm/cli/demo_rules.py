"""Rules that judge an answer by its content: numbers, units, dates, words. Text in, verdict out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_WORDS = 14  # the longest answer of the house style


class Verdict(NamedTuple):
    """`ok`: as the person wants it. `right`: the content is right, whatever its style. `why`: one line for people."""

    ok: bool
    why: str
    right: bool


Check = Callable[[str], Verdict]


class Unit(NamedTuple):
    """A unit of measure: how it may be written in an answer, and its short form in the house style."""

    short: str
    names: tuple[str, ...]


METRE = Unit("m", ("metres", "metre", "meters", "meter"))
KILOMETRE = Unit("km", ("kilometres", "kilometre", "kilometers", "kilometer"))
CENTIMETRE = Unit("cm", ("centimetres", "centimetre", "centimeters", "centimeter"))
MILLIMETRE = Unit("mm", ("millimetres", "millimetre", "millimeters", "millimeter"))
GRAM = Unit("g", ("grams", "gram", "grammes", "gramme"))
KILOGRAM = Unit("kg", ("kilograms", "kilogram", "kilogrammes", "kilogramme", "kilos", "kilo"))
LITRE = Unit("l", ("litres", "litre", "liters", "liter"))
MILLILITRE = Unit("ml", ("millilitres", "millilitre", "milliliters", "milliliter"))
UNITS = (METRE, KILOMETRE, CENTIMETRE, MILLIMETRE, GRAM, KILOGRAM, LITRE, MILLILITRE)

_UNIT_OF_NAME = {name: unit for unit in UNITS for name in (unit.short, *unit.names)}
_NAMES = "|".join(sorted(_UNIT_OF_NAME, key=len, reverse=True))
# 7000, 7,000, 7 000 and 7000.0, each with or without a unit after it
_QUANTITY = re.compile(
    rf"(?<![\w.,])(\d{{1,3}}(?:[,\u00a0\u202f ]\d{{3}})+|\d+)(\.\d+)?(?![\d])(?:([ \u00a0\u202f(-]*)({_NAMES})\b)?",
    re.I,
)
_BANNED = (
    "as an ai",
    "language model",
    "smollm",
    "certainly",
    "sure,",
    "great question",
    "i'm happy to",
    "i am happy to",
)
# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def count_sentences(text: str) -> int:
    """Return how many sentences `text` has; a new line begins another one, a decimal point does not end one."""
    plain = re.sub(r"\b(e\.g|i\.e|etc|approx)\.", r"\1", text, flags=re.I)
    return len([part for part in re.split(r"[.!?]+(?=\s|$)|\n+", plain) if re.search(r"\w", part)])


def spell_number(value: int) -> str:
    """Return `value` (below a million) in English words, without 'and' and hyphens."""
    if value >= 1000:
        return f"{spell_number(value // 1000)} thousand" + (f" {spell_number(value % 1000)}" if value % 1000 else "")
    if value >= 100:
        return f"{_ONES[value // 100]} hundred" + (f" {spell_number(value % 100)}" if value % 100 else "")
    if value >= 20:
        return _TENS[value // 10 - 2] + (f" {_ONES[value % 10]}" if value % 10 else "")
    return _ONES[value]


def style_fault(answer: str) -> str | None:
    """Return what is against the house style, or None: one sentence of at most 14 words, calm, without preamble."""
    lowered = answer.lower()
    if "!" in answer:
        return "no exclamation marks, please"
    if any(phrase in lowered for phrase in _BANNED):
        return "start with the answer, not with yourself"
    if len(answer.split()) > MAX_WORDS:
        return f"too long: {MAX_WORDS} words at most"
    if count_sentences(answer) != 1:
        return "one sentence, please"
    return None


def check_quantity(*, asked: int, expected: int, unit: Unit) -> Check:
    """Return a rule: the answer gives `expected` in `unit`, and no other value in that unit.

    Numbers with another unit are free (700 cm beside 7 m), and so are those of the calculation: `asked`, 1, the factor.
    """
    allowed = {expected, asked, expected // asked, 1}

    def check(answer: str) -> Verdict:
        text = _plain_digits(answer, sorted(allowed, reverse=True))
        found = [(_value(match), _unit(match), match.group(3)) for match in _QUANTITY.finditer(text)]
        counted = [(value, gap) for value, of, gap in found if of in (unit, None)]
        if not any(value == expected for value, _ in counted):
            return Verdict(False, f"wrong: it is {expected} {unit.short}", False)
        stray = [value for value, _ in counted if value not in allowed]
        if stray:
            return Verdict(False, f"says {stray[0]:g} as well as {expected}", False)
        gaps = [gap for value, of, gap in found if value == expected and of == unit]
        if not gaps:
            return Verdict(False, f"the unit is missing: {expected} {unit.short}", True)
        if "" in gaps:
            return Verdict(False, "a space between number and unit, please", True)
        return _verdict_on_style(answer)

    return check


def check_date(iso: str) -> Check:
    """Return a rule: the answer holds the ISO 8601 date `iso` (YYYY-MM-DD) and no other one."""
    basic = iso.replace("-", "")

    def check(answer: str) -> Verdict:
        plain = re.sub("[\u2010-\u2015]", "-", answer)
        dates = set(re.findall(r"(?<![\d-])\d{4}-\d{1,2}-\d{1,2}(?![\d-])", plain))
        if dates - {iso} or not (dates or re.search(rf"(?<!\d){basic}(?!\d)", plain)):
            return Verdict(False, f"wrong: it is {iso}", False)
        if not dates:
            return Verdict(False, f"with hyphens, please: {iso}", True)
        return _verdict_on_style(answer)

    return check


def check_words(accepted: Sequence[str], *, asked: str, refused: Sequence[str] = ()) -> Check:
    """Return a rule: the answer has a word of `accepted` and none of `refused`; 'butterfl-' stands for every ending.

    Words of the question `asked` do not count: a lighthouse is not explained by its 'light'.
    """
    echoed = set(re.findall(r"\w+", asked.lower()))

    def says(answer: str, wanted: Sequence[str]) -> bool:
        words = " ".join(word for word in re.findall(r"\w+", answer.lower()) if word not in echoed)
        endings = [rf"{word[:-1]}\w*" if word.endswith("-") else rf"{word}(?:s|es)?" for word in wanted]
        return any(re.search(rf"\b{ending}\b", words) for ending in endings)

    def check(answer: str) -> Verdict:
        if not says(answer, accepted):
            return Verdict(False, f"wrong: nothing about '{accepted[0].rstrip('-')}'", False)
        if says(answer, refused):
            return Verdict(False, f"wrong: it is '{accepted[0]}'", False)
        return _verdict_on_style(answer)

    return check


def _verdict_on_style(answer: str) -> Verdict:
    fault = style_fault(answer)
    return Verdict(fault is None, fault or "right", True)


def _plain_digits(answer: str, values: Sequence[int]) -> str:
    text = answer.replace("**", "").replace("`", "")
    for value in values:
        words = spell_number(value).split()
        pattern = r"[\s-]+(?:and[\s-]+)?".join(words)
        if value > 1:  # 'one' is more often a word than a number
            text = re.sub(rf"\b{pattern}\b", str(value), text, flags=re.I)
    return text


def _value(match: re.Match[str]) -> float:
    return float(re.sub(r"\D", "", match.group(1)) + (match.group(2) or ""))


def _unit(match: re.Match[str]) -> Unit | None:
    return _UNIT_OF_NAME[match.group(4).lower()] if match.group(4) else None
