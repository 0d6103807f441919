"""Who chats in `everswarm demo`, what they ask, how they judge the real answers. Pure; deterministic by seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from everswarm.cli.demo_tasks import (
    FAMILIES,
    Task,
    date_tasks,
    definition_tasks,
    fact_tasks,
    held_out_tasks,
    unit_tasks,
)

ANSWER_TOKENS = 32  # limit on every answer of the demo: a right one is short
TASKS_A_PERSON = 6
HELD_OUT: tuple[Task, ...] = held_out_tasks()
SHOWN = HELD_OUT[:3]  # one a family: the demo prints their answers before and after
_NAMES = (
    "ada", "bela", "chidi", "dora", "emil", "fatma", "goran", "hana", "ines", "jonas",
    "kofi", "lena", "mira", "nils", "olga", "pavel", "rosa", "sami", "tess", "yuki",
)  # fmt: skip
_RIGHT, _BADLY_SAID, _WRONG = 5, 3, 1  # ratings


@dataclass(frozen=True)
class Person:
    """A scripted user of the demo: a name and the questions that they will ask."""

    name: str
    tasks: tuple[Task, ...]


class Judgement(NamedTuple):
    """What a person sends as feedback. Without a correction the answer was right as it stood."""

    rating: int
    correction: str | None
    comment: str | None


class ReportRow(NamedTuple):
    """How many answers of one family passed its rule, and how many were right in content if not in style."""

    family: str
    passed: int
    right: int
    total: int


def scripted_people(seed: int = 0) -> tuple[Person, ...]:
    """Return 20 people with 6 questions each, of all families; no two questions are about the same thing."""
    rng = random.Random(seed)
    tasks = [*fact_tasks(rng), *definition_tasks()]
    missing = len(_NAMES) * TASKS_A_PERSON - len(tasks)
    tasks += [*unit_tasks(missing // 2, rng), *date_tasks(missing - missing // 2, rng)]
    # dealt like cards from a pile sorted by family, so that everyone asks something of each
    hands = [tasks[start :: len(_NAMES)] for start in range(len(_NAMES))]
    for hand in hands:
        rng.shuffle(hand)
    return tuple(Person(name, tuple(hand)) for name, hand in zip(_NAMES, hands, strict=True))


def judge(task: Task, answer: str) -> Judgement:
    """Return the person's judgement of a real `answer`: 5 right, 3 right but badly said, 1 wrong."""
    verdict = task.check(answer)
    if verdict.ok:
        return Judgement(_RIGHT, None, None)
    return Judgement(_BADLY_SAID if verdict.right else _WRONG, task.correction, verdict.why)


def rule_report(tasks: Sequence[Task], answers: Sequence[str]) -> list[ReportRow]:
    """Return one row a family and a last row 'all' for `answers` to `tasks`, in the same order.

    Raises:
        ValueError: there is not one answer a task.
    """
    verdicts = [(task.family, task.check(answer)) for task, answer in zip(tasks, answers, strict=True)]
    rows = []
    for family in (*FAMILIES, "all"):
        of_family = [verdict for name, verdict in verdicts if family in (name, "all")]
        passed, right = sum(verdict.ok for verdict in of_family), sum(verdict.right for verdict in of_family)
        rows.append(ReportRow(family, passed, right, len(of_family)))
    return rows
