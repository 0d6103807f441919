"""One call: the default."""

from __future__ import annotations

from collections.abc import Sequence

from everswarm.server.swarm.budget import Planned
from everswarm.server.swarm.run import Reply, Run


async def single(run: Run) -> Reply:
    """Ask the role that the request is for."""
    return await run.finish(run.route.role, why=run.route.reason)


def worst_case(run: Run) -> Sequence[Planned]:
    """One prompt and one answer."""
    return [Planned(run.route.role, run.size(run.route.role).total)]
