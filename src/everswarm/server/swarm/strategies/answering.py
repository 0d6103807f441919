"""Runs the strategy of a request, or a cheaper one where the quota asks for it; gives the best there is at the end."""

from __future__ import annotations

import asyncio

from everswarm.errors import EverswarmError, UnavailableError
from everswarm.server.gateway import Answered
from everswarm.server.swarm.budget import Budget, OverBudgetError
from everswarm.server.swarm.run import Reply, Run
from everswarm.server.swarm.strategies.table import STRATEGIES, WITH_TOOLS, Strategy, worst_case_tokens
from everswarm.server.swarm.strategies.tools import look_up


async def answer(run: Run, *, deadline_seconds: float) -> Reply:
    """Return the answer to the request of `run`.

    What fails on the way is in the trace; the best answer so far is given where there is one. The deadline is of
    several calls, and does not count what the first may wait for a quota; one call has the timeout of its endpoint.

    Raises:
        EverswarmError: what `Gateway.chat` raises, where no answer came at all.
        UnavailableError: the deadline came before any answer.
    """
    await look_up(run)
    strategy = await _affordable(run, _wanted(run))
    run.trace.strategy = strategy.name
    if strategy is STRATEGIES["single"]:
        if run.trace.worst_case_tokens is not None:  # a decision or a summary came before it
            run.trace.declare(worst_case_tokens(strategy, run))
        return await strategy.answer(run)
    run.budget = Budget(worst_case_tokens(strategy, run))
    run.trace.declare(run.budget.left_tokens)
    waits = run.call.wait_seconds  # for a quota, before the first call: that is not the models' time
    try:
        async with asyncio.timeout(None if waits is None else deadline_seconds + waits):
            reply = await strategy.answer(run)
    except TimeoutError:
        reply = _best(run, UnavailableError(f"No model answered within {deadline_seconds:.0f} s. Try again."))
    except OverBudgetError as error:
        reply = _best(run, UnavailableError(f"The answer took more tokens than '{strategy.name}' may: {error}."))
    except EverswarmError as error:
        reply = _best(run, error)
    run.trace.role = reply.role
    return reply


def declared_tokens(run: Run) -> int:
    """Return the most that the strategy of `run` may cost, by the estimate."""
    return worst_case_tokens(_wanted(run), run)


def _wanted(run: Run) -> Strategy:
    if run.tools and run.route.strategy == "single":
        return WITH_TOOLS
    return STRATEGIES[run.route.strategy]


async def _affordable(run: Run, strategy: Strategy) -> Strategy:
    """Return `strategy`, or the first cheaper one that fits into what is left of the quotas."""
    if strategy.name in ("calculate", "single") and strategy is not WITH_TOOLS:
        return strategy
    while strategy.cheaper is not None:
        needs = strategy.worst_case(run)
        shortage = await run.gateway.shortage(needs, priority=run.call.priority)
        if shortage is None:
            return strategy
        run.trace.wished_strategy = run.trace.wished_strategy or strategy.name
        cheaper = STRATEGIES[strategy.cheaper]
        name = "the use of tools" if strategy is WITH_TOOLS else strategy.name
        run.trace.note(f"{name} became {cheaper.name}: {shortage}")
        run.tell(f"{cheaper.name} instead of {name}: the quota is short")
        strategy = cheaper
    return strategy


def _best(run: Run, error: EverswarmError) -> Answered:
    if run.best is None:
        raise error
    run.trace.note(f"this is the best answer so far: {error}")
    return run.best
