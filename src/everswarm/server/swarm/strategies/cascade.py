"""Answer, check cheaply, and ask a second model once where the check fails.

After AutoMix (arXiv 2310.12963) and FrugalGPT (arXiv 2305.05176); free checks come first, because a check by a model
costs the prompt once more. Where it would cost nearly as much as the second answer, that is asked for instead: so a
cascade costs less than twice a single answer on average. The second model does not see the first answer: models of one
size tend to agree with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from everswarm.errors import EverswarmError
from everswarm.server.gateway import Answered
from everswarm.server.gateway.prompt_size import estimate_prompt_tokens
from everswarm.server.swarm.budget import OverBudgetError, Planned
from everswarm.server.swarm.checks import (
    SELF_CHECK_TOKENS,
    Verdict,
    check_free,
    conclude,
    read_self_check,
    self_check_messages,
)
from everswarm.server.swarm.run import Ask, Reply, Run, text_of

WORTH_A_CHECK = 0.6  # of a second answer's tokens; a check that costs c and fails f of the time pays while c < (1 - f)
CHECK_PROMPT_TOKENS = 700  # around the question: what `self_check_messages` adds, its parts of the answer included


async def cascade(run: Run) -> Reply:
    """Return the first answer if it passes its checks, else the second model's."""
    run.best = first = await run.ask(Ask(run.route.role, "answer", run.route.reason))
    verdict = _free_verdict(run, first)
    second = run.other_role(first.role or run.route.role)  # another may have answered in its place
    if second is None:
        if verdict.passed is False:
            run.trace.note("nobody of another model is there to ask")
        return first
    if verdict.passed is None and not _pays(run, first, second):
        verdict = Verdict(False, "cost", "a check would cost nearly as much as another answer")
    elif verdict.passed is None:
        with run.keep(run.size(second).total):  # a check that leaves no room for what follows from it is of no use
            verdict = await _checked_by_a_model(run, first, checker=second)
    if verdict.passed is not False:
        return first
    run.tell(f"the {second} answers: {verdict.detail}")
    return await run.finish(second, "escalation", why=f"{verdict.name}: {verdict.detail}")


def worst_case(run: Run) -> Sequence[Planned]:
    """The answer, the check, the second answer."""
    role = run.route.role
    second = run.other_role(role)
    first = Planned(role, run.size(role).total)
    if second is None:
        return [first]
    size = run.size(second)
    return [first, Planned(second, size.prompt_tokens + CHECK_PROMPT_TOKENS), Planned(second, size.total)]


def _pays(run: Run, first: Answered, second: str) -> bool:
    """Say whether asking `second` for a check is much cheaper than asking for its answer, by the same estimate."""
    said = text_of(first)
    check = estimate_prompt_tokens({"messages": self_check_messages(run.question, said, kind=run.route.kind)})
    answer = estimate_prompt_tokens({"messages": [*run.messages, {"role": "assistant", "content": said}]})
    return check + SELF_CHECK_TOKENS <= WORTH_A_CHECK * answer


def _free_verdict(run: Run, first: Answered) -> Verdict:
    response_format = run.call.payload.get("response_format")
    verdict = conclude(check_free(run.question, run.route.kind, first.response, response_format=response_format))
    run.trace.found("check", verdict.detail, why=verdict.name, outcome="failed" if verdict.passed is False else "done")
    return verdict


async def _checked_by_a_model(run: Run, first: Answered, *, checker: str) -> Verdict:
    """Ask `checker` for one word; where it cannot be asked, or says something else, nothing is known."""
    run.tell(f"the {checker} is checking")
    messages = self_check_messages(run.question, text_of(first), kind=run.route.kind)
    ask = Ask(
        checker,
        "check",
        "no free check could tell",
        messages=messages,
        answer_tokens=SELF_CHECK_TOKENS,
        fields={"temperature": 0},
    )
    try:
        said = text_of(await run.ask(ask))
    except (EverswarmError, OverBudgetError) as error:
        return Verdict(None, "model", str(error))
    passed = read_self_check(said)
    words = {True: "says that it is right", False: "says that it is wrong", None: f"says {said[:40]!r}"}
    run.trace.steps[-1].detail = verdict = f"the {checker} {words[passed]}"
    return Verdict(passed, "model", verdict)
