"""Models that say what a test tells them, and what is looked at after an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.fakes.skilled_models import FakeSwarm, ToldModel

from everswarm.errors import QuotaSpentError, UnavailableError
from everswarm.llm.protocol import Payload
from everswarm.server.swarm.trace import Traced
from everswarm.settings import RoleSettings

PROBLEM = "Anna has 3 boxes with 4 pens in each and loses 2 of the pens. How many pens has she now?"
RIGHT = "Anna has 3 * 4 = 12 pens, and 12 - 2 = 10 remain. The answer is 10."
WRONG = "Anna has 3 * 4 = 13 pens, and 13 - 2 = 11 remain. The answer is 11."
CONVERSATION = [  # long enough for a check to be cheaper than a second answer
    {"role": "user", "content": "I have some questions. " + "They are for a lesson at school. " * 10},
    {"role": "assistant", "content": "With pleasure. " + "Tell me what you want to know. " * 10},
    {"role": "user", "content": PROBLEM},
]
PARTS = "1. What is a crab?\n2. What is a snail?"
ROLES = {"specialist": RoleSettings(good_at=[]), "coordinator": RoleSettings(good_at=[])}
DOWN = UnavailableError("it is down")
SPENT = QuotaSpentError("spent", retry_after_seconds=3600)

Told = str | dict[str, Any] | Exception | None
Open = Callable[..., FakeSwarm]


def model(name: str, *said: Told) -> ToldModel:
    """Return a model that says one after another, and the last again and again."""
    left = list(said)
    return ToldModel(lambda payload: left.pop(0) if len(left) > 1 else left[0], model=name)


def steps(trace: Traced, *, models_only: bool = True) -> list[tuple[str, str | None, str]]:
    return [(step.purpose, step.role, step.outcome) for step in trace.steps if step.role is not None or not models_only]


def last_said(payload: Payload) -> str:
    return str(payload["messages"][-1]["content"])


def is_check(payload: Payload) -> bool:
    return "yes or no" in last_said(payload)


async def reservations(swarm: FakeSwarm) -> tuple[int, int]:
    """Return the tokens that are held, and those that are used, when all is settled."""
    for _ in range(20):
        await asyncio.sleep(0)
    await swarm.gateway._store.beat()
    limits = [limit for view in await swarm.gateway.quotas() for limit in view.limits if limit.unit == "tokens"]
    return sum(limit.held for limit in limits), sum(limit.used for limit in limits)


def parted(payload: Payload) -> Told:
    said = last_said(payload)
    if "Put them together" in said:
        return "Together."
    if "crab?" in said.rpartition("only briefly: ")[2]:
        return "A crab walks."
    return "A snail creeps."
