"""Several drafts and one writer who makes one answer of them. Only on request: it costs five times a single answer.

Self-MoA (arXiv 2502.00674): drafts of the best role rather than of a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence

from everswarm.server.gateway import Answered
from everswarm.server.swarm.budget import Planned
from everswarm.server.swarm.run import Ask, Reply, Run, text_of
from everswarm.server.swarm.strategies.writing import WRITER_PROMPT_TOKENS, draft_tokens, written_from

DRAFTS = 3
TEMPERATURE = 0.8

TASK = (
    "Below are drafts of an answer to the last question, by several assistants. They may be wrong. Write the one best "
    "answer: keep what is right, correct what is wrong, leave out what repeats. Do not mention the drafts."
)


async def synthesise(run: Run) -> Reply:
    """Return what the writer makes of the drafts."""
    run.tell(f"{DRAFTS} drafts are written")
    asks = [Ask(run.route.role, "draft", f"draft {number + 1}", fields=_sampling(number)) for number in range(DRAFTS)]
    asked = await run.ask_all(asks, came=run.came)
    drafts = [draft for draft in asked if isinstance(draft, Answered)]
    if not drafts:
        raise next(error for error in asked if not isinstance(error, Answered))
    run.best = drafts[0]  # asked as the request says, where it came
    if len(drafts) == 1:
        run.trace.note("only one draft came")
        return drafts[0]
    run.tell(f"the {run.route.role} makes one answer of {len(drafts)} drafts")
    messages = written_from(run, TASK, [("draft", text_of(draft)) for draft in drafts])
    return await run.finish(run.route.role, "write", why=f"one answer of {len(drafts)} drafts", messages=messages)


def worst_case(run: Run) -> Sequence[Planned]:
    """The drafts, and a writer who reads them all."""
    role = run.route.role
    size = run.size(role)
    writer = size.total + WRITER_PROMPT_TOKENS + DRAFTS * draft_tokens(size.answer_tokens)
    return [*[Planned(role, size.total)] * DRAFTS, Planned(role, writer)]


def _sampling(number: int) -> dict[str, object]:
    return {} if number == 0 else {"temperature": TEMPERATURE, "seed": number}
