"""A request of several parts: each is answered by who is good at it, side by side, and one model puts them together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from everswarm.errors import BadRequestError, EverswarmError
from everswarm.server.gateway import Answered
from everswarm.server.swarm.budget import OverBudgetError, Planned
from everswarm.server.swarm.routing import COORDINATOR
from everswarm.server.swarm.run import Ask, Reply, Run, text_of
from everswarm.server.swarm.strategies.single import single
from everswarm.server.swarm.strategies.writing import WRITER_PROMPT_TOKENS, draft_tokens, with_appendix, written_from

MOST_PARTS = 4
PART_CHARACTERS = 300  # so that it fits into PART_PROMPT_TOKENS in any script; the whole request stands above it
PLAN_ANSWER_TOKENS = 200
PLAN_PROMPT_TOKENS = 200
PART_PROMPT_TOKENS = 900  # of the part itself, and the words around it, in any script
ASCII_PART_PROMPT_TOKENS = 400
TASK = (
    "Below are answers to the parts of the last request, by several assistants. Put them together into one answer to "
    "the whole request, in the order of the parts. Keep what they say; do not mention the assistants."
)
_ITEM = re.compile(r"^[ \t]*(?:\d{1,3}[.)]|[-*•])[ \t]+(\S.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?:^|\s)(\d{1,2})[.)]\s+(?=\S)")
_QUESTION = re.compile(r"[^.!?\n]+\?")
READ_CHARACTERS = 4000
_PLAN_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "parts",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"parts": {"type": "array", "items": {"type": "string"}, "maxItems": MOST_PARTS}},
            "required": ["parts"],
            "additionalProperties": False,
        },
    },
}


async def split(run: Run) -> Reply:
    """Return one answer made of the answers to the parts."""
    parts = listed_parts(run.question) or await _planned_parts(run)
    if len(parts) < 2:
        run.trace.strategy, run.trace.wished_strategy = "single", "split"
        run.trace.note("split became single: there is only one part")
        return await single(run)
    run.tell(f"{len(parts)} parts are answered")
    came: dict[int, Answered] = {}

    def note(number: int, answered: Answered) -> None:
        came[number] = answered
        run.best = _side_by_side(run, [(parts[at], came[at]) for at in sorted(came)])

    asked = await run.ask_all([_ask(run, part) for part in parts], came=note)
    answers = [(parts[at], came[at]) for at in sorted(came)]
    if not answers:
        raise next(error for error in asked if not isinstance(error, Answered))
    if len(answers) < len(parts):
        run.trace.note(f"{len(parts) - len(answers)} of {len(parts)} parts were not answered")
    run.tell(f"the {run.route.role} puts {len(answers)} parts together")
    texts = [("part", f"{part}\n\n{text_of(answer)}") for part, answer in answers]
    return await run.finish(
        run.route.role, "assemble", why="one answer of the parts", messages=written_from(run, TASK, texts)
    )


def worst_case(run: Run) -> Sequence[Planned]:
    """A plan, every part by whoever costs most, and the putting together."""
    role = run.route.role
    size = run.size(*run.gateway.roles) if run.gateway.roles else run.size(role)
    answer_tokens = part_tokens(run)
    around = ASCII_PART_PROMPT_TOKENS if run.question.isascii() else PART_PROMPT_TOKENS
    part = size.prompt_tokens + around + answer_tokens
    parts = MOST_PARTS * (draft_tokens(answer_tokens) + around)
    return [
        Planned(_planner(run), size.prompt_tokens + PLAN_PROMPT_TOKENS + PLAN_ANSWER_TOKENS),
        *[Planned(role, part)] * MOST_PARTS,
        Planned(role, size.total + WRITER_PROMPT_TOKENS + parts),
    ]


def part_tokens(run: Run) -> int:
    """Return how long the answer to one part may be."""
    return max(64, run.answer_tokens // 2)


def listed_parts(question: str) -> list[str]:
    """Return the parts that a request lists itself, as items or as questions in a row; none where it does not."""
    items = [item.strip() for item in _ITEM.findall(question)]
    if len(items) < 2:
        items = _numbered(question) or [sentence.strip() for sentence in _QUESTION.findall(question[:READ_CHARACTERS])]
    return [item[:PART_CHARACTERS] for item in items] if 2 <= len(items) <= MOST_PARTS else []


def _numbered(question: str) -> list[str]:
    """Return the items that stand in one line, numbered from 1 on: `1. a river 2. a planet`."""
    _, *pieces = _NUMBER.split(question[:READ_CHARACTERS])
    numbers, items = pieces[::2], pieces[1::2]
    return [item.strip() for item in items] if numbers == [str(place) for place in range(1, len(numbers) + 1)] else []


async def _planned_parts(run: Run) -> list[str]:
    """Ask the coordinator for the parts; none where it does not say any."""
    run.tell("the coordinator plans")
    text = f"Do not answer it. Name the 2 to {MOST_PARTS} parts of this request that can be answered apart, as JSON: "
    text += '{"parts": ["…", "…"]}'
    messages = [{"role": "user", "content": f"{run.question}\n\n{text}"}]  # no data: the parts choose who answers them
    ask = Ask(
        _planner(run),
        "plan",
        "the request does not list its parts",
        messages=messages,
        answer_tokens=PLAN_ANSWER_TOKENS,
        fields={"response_format": _PLAN_FORMAT, "temperature": 0},
    )
    try:
        try:
            return read_parts(text_of(await run.ask(ask)))
        except BadRequestError:  # some endpoints have no `response_format`
            ask.fields = {"temperature": 0}
            return read_parts(text_of(await run.ask(ask)))
    except (EverswarmError, OverBudgetError) as error:
        run.trace.note(f"no plan: {error}")
        return []


def _planner(run: Run) -> str:
    return COORDINATOR if COORDINATOR in run.gateway.roles and not run.is_named else run.route.role


def read_parts(text: str) -> list[str]:
    """Return the parts in a plan; none where it is no plan."""
    try:
        said = json.loads(text[text.index("{") : text.rindex("}") + 1])["parts"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    parts = [part.strip()[:PART_CHARACTERS] for part in said if isinstance(part, str)] if isinstance(said, list) else []
    return list(dict.fromkeys(part for part in parts if len(part.split()) > 1))[:MOST_PARTS]  # one word is no task


def _ask(run: Run, part: str) -> Ask:
    messages = with_appendix(run.messages, f"Answer only this part of it, and only briefly: {part}")
    role = run.role_for(part)
    return Ask(role, "part", part[:80], messages=messages, answer_tokens=part_tokens(run))


def _side_by_side(run: Run, answers: Sequence[tuple[str, Answered]]) -> Answered:
    """Return what can be given without the model that puts together: part after part."""
    text = "\n\n".join(f"{part}\n{text_of(answer)}" for part, answer in answers)
    return run.say(text, model=answers[0][1].model)
