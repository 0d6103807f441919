"""All strategies, and what each costs at worst."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from everswarm.server.swarm.budget import Planned
from everswarm.server.swarm.kinds import StrategyName
from everswarm.server.swarm.run import Reply, Run
from everswarm.server.swarm.strategies import calculate, cascade, single, split, synthesise, tools, vote


@dataclass(frozen=True)
class Strategy:
    """A way to answer."""

    name: StrategyName
    answer: Callable[[Run], Awaitable[Reply]]
    worst_case: Callable[[Run], Sequence[Planned]]  # every call that it may make
    cheaper: StrategyName | None = None  # what is done where the quota does not allow it


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("calculate", calculate.calculate, single.worst_case, cheaper="single"),
        Strategy("single", single.single, single.worst_case),
        Strategy("cascade", cascade.cascade, cascade.worst_case, cheaper="single"),
        Strategy("vote", vote.vote, vote.worst_case, cheaper="single"),
        Strategy("split", split.split, split.worst_case, cheaper="single"),
        Strategy("synthesise", synthesise.synthesise, synthesise.worst_case, cheaper="cascade"),
    )
}
WITH_TOOLS = Strategy("single", tools.with_tools, tools.worst_case, cheaper="single")


def worst_case_tokens(strategy: Strategy, run: Run) -> int:
    """Return the tokens that `strategy` declares for `run`: of all its calls, prompts and answers."""
    return sum(planned.tokens for planned in strategy.worst_case(run))
