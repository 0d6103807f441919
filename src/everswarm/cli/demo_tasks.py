"""The questions of the demo, by family: each with the rule that judges any answer and the person's own answer."""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from everswarm.cli.demo_facts import DEFINITIONS, FACTS, HELD_OUT_DEFINITIONS, HELD_OUT_FACTS, Fact
from everswarm.cli.demo_rules import (
    CENTIMETRE,
    GRAM,
    KILOGRAM,
    KILOMETRE,
    LITRE,
    METRE,
    MILLILITRE,
    Check,
    Unit,
    check_date,
    check_quantity,
    check_words,
)

UNIT_FAMILY, DATE_FAMILY, FACT_FAMILY, DEFINITION_FAMILY = "units", "dates", "one short sentence", "house style"
FAMILIES = (UNIT_FAMILY, DATE_FAMILY, FACT_FAMILY, DEFINITION_FAMILY)


@dataclass(frozen=True)
class Task:
    """One question. `subject` is what it is about, however it is worded: no two tasks share one."""

    question: str
    family: str
    subject: str
    check: Check
    correction: str  # what the person would write


class Conversion(NamedTuple):
    """`factor` of the smaller unit make one of the bigger."""

    source: Unit
    target: Unit
    factor: int


CONVERSIONS = (
    Conversion(KILOMETRE, METRE, 1000),
    Conversion(KILOGRAM, GRAM, 1000),
    Conversion(LITRE, MILLILITRE, 1000),
    Conversion(METRE, CENTIMETRE, 100),
)
_HELD_OUT_AMOUNTS = ((CONVERSIONS[0], 12), (CONVERSIONS[1], 9), (CONVERSIONS[2], 3), (CONVERSIONS[3], 15))
_HELD_OUT_DATES = ("2017-04-22", "1986-11-03", "2025-07-14", "1973-01-26")
_AMOUNTS = range(2, 20)
_UNIT_WORDINGS = ("Convert {n} {short} to {target}.", "What is {n} {short} in {target}?")
_DATE_WORDINGS = ("Write {date} as an ISO date.", "What is {date} in ISO format?")
_FACT_WORDINGS = ("{question} Answer in one short sentence.", "In one short sentence: {question}")


def unit_tasks(count: int, rng: random.Random) -> list[Task]:
    """Return `count` conversions, evenly over the units, none of which is held out."""
    tasks: list[Task] = []
    per_conversion = -(-count // len(CONVERSIONS))
    for conversion in CONVERSIONS:
        free = [amount for amount in _AMOUNTS if (conversion, amount) not in _HELD_OUT_AMOUNTS]
        tasks += [
            _unit_task(conversion, amount, rng.choice(_UNIT_WORDINGS)) for amount in rng.sample(free, per_conversion)
        ]
    rng.shuffle(tasks)
    return tasks[:count]


def date_tasks(count: int, rng: random.Random) -> list[Task]:
    """Return `count` dates from 1970 to 2029, every month equally often, none of which is held out."""
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        date = datetime.date(rng.randint(1970, 2029), len(tasks) % 12 + 1, rng.randint(1, 28))
        if date.isoformat() not in _HELD_OUT_DATES:
            tasks[date.isoformat()] = _date_task(date, rng.choice(_DATE_WORDINGS))
    return list(tasks.values())


def fact_tasks(rng: random.Random) -> list[Task]:
    """Return every fact that is not held out, asked for in one short sentence."""
    return [_fact_task(fact, FACT_FAMILY, rng.choice(_FACT_WORDINGS)) for fact in FACTS]


def definition_tasks() -> list[Task]:
    """Return every definition that is not held out; that it should be short is nowhere said: people correct it."""
    return [_fact_task(fact, DEFINITION_FAMILY) for fact in DEFINITIONS]


def held_out_tasks() -> tuple[Task, ...]:
    """Return the questions that nobody asks before the end, family by family in turn."""
    units = [_unit_task(conversion, amount, wording) for (conversion, amount), wording in _worded(_HELD_OUT_AMOUNTS)]
    dates = [
        _date_task(datetime.date.fromisoformat(iso), _DATE_WORDINGS[index % len(_DATE_WORDINGS)])
        for index, iso in enumerate(_HELD_OUT_DATES)
    ]
    facts = [_fact_task(fact, FACT_FAMILY, _FACT_WORDINGS[index % 2]) for index, fact in enumerate(HELD_OUT_FACTS)]
    definitions = [_fact_task(fact, DEFINITION_FAMILY) for fact in HELD_OUT_DEFINITIONS]
    return tuple(task for row in zip(units, dates, definitions, facts, strict=True) for task in row)


def _worded(amounts: Sequence[tuple[Conversion, int]]) -> list[tuple[tuple[Conversion, int], str]]:
    return [(amount, _UNIT_WORDINGS[index % len(_UNIT_WORDINGS)]) for index, amount in enumerate(amounts)]


def _unit_task(conversion: Conversion, amount: int, wording: str) -> Task:
    source, target, factor = conversion
    expected = amount * factor
    return Task(
        question=wording.format(n=amount, short=source.short, target=target.names[0]),
        family=UNIT_FAMILY,
        subject=f"{amount} {source.short} in {target.short}",
        check=check_quantity(asked=amount, expected=expected, unit=target),
        correction=f"{amount} {source.short} = {expected} {target.short}.",
    )


def _date_task(date: datetime.date, wording: str) -> Task:
    return Task(
        question=wording.format(date=f"{date.day} {date:%B} {date.year}"),
        family=DATE_FAMILY,
        subject=date.isoformat(),
        check=check_date(date.isoformat()),
        correction=f"{date.isoformat()}.",
    )


def _fact_task(fact: Fact, family: str, wording: str = "{question}") -> Task:
    return Task(
        question=wording.format(question=fact.question),
        family=family,
        subject=fact.question,
        check=check_words(fact.accepted, asked=fact.question, refused=fact.refused),
        correction=fact.answer,
    )
