"""No model: what is asked is one sum, and the calculator knows it."""

from __future__ import annotations

from everswarm.server.swarm.run import CALCULATOR, Reply, Run
from everswarm.server.swarm.strategies.single import single
from everswarm.server.swarm.tools.calculator import read_sum, worked_out
from everswarm.server.swarm.tools.tool import ToolFailedError


async def calculate(run: Run) -> Reply:
    """Say what the sum is; where it cannot be calculated a model is asked."""
    expression = read_sum(run.question)
    step = run.trace.begin("tool", why="the whole question is one sum")
    step.tool, step.arguments = CALCULATOR, {"expression": expression or run.question[:200]}
    try:
        if expression is None:
            raise ToolFailedError("this is not one sum")
        said = worked_out(expression)
    except ToolFailedError as error:
        step.end("failed", str(error))
        run.trace.strategy = "single"
        run.trace.note(f"a model was asked, because the calculator could not: {error}")
        return await single(run)
    step.end(detail=said)
    return run.say(said, model=CALCULATOR)
