"""A long conversation, made to fit: the newest turns word for word, a summary of those before. Knows no database.

The summary goes in front as a message of the user with a short reply, so that user and assistant alternate as the
templates of some models demand, and every kept turn stays as it was said.

When a summary must be made, so much goes into it that the next questions fit without another one: it costs a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from everswarm.errors import BadRequestError
from everswarm.server.threads.history import History, Turn
from everswarm.server.threads.summary import (
    Estimate,
    Message,
    cut_to,
    most,
    shortened_turns,
    summary_preface,
    summary_tokens,
)

Summarise = Callable[[list[Message], str | None], Awaitable[str | None]]  # turns, earlier summary; None: could not

GROWTH_PART = 4  # a quarter of the budget stays free for the next turns, when a summary is made
LONG_CHARACTERS = 20_000  # of a conversation that is weighed in a thread: others are answered meanwhile
LEAST_SUMMARY_CHARACTERS = 100  # a shorter one says nothing
UNDERSTOOD = "Understood."  # the reply to the summary
SYSTEM_ROLES = ("system", "developer")


class Compacted(NamedTuple):
    """A prompt that fits. A summary with a larger `upto` than before is to be kept."""

    messages: list[Message]
    summary: str | None
    upto: int  # the position of the last turn that is in `summary`
    note: str  # for the trace: what is not there word for word


async def compact(
    messages: Sequence[Mapping[str, Any]],
    history: History,
    *,
    budget_tokens: int,
    estimate: Estimate,
    summarise: Summarise,
) -> Compacted:
    """Return the prompt for the next question of a thread, at most `budget_tokens` by `estimate`.

    `messages` are those of the request: system messages, which come first, and the question, which comes last; both
    stay as they are. Between them comes as much of `history` as fits: whole questions with their answers, the newest.
    `summarise` is called at most once, and only when turns that no summary has do not fit.

    Raises:
        BadRequestError: the question with the system messages does not fit.
    """
    prompt = _Prompt.of(messages, budget_tokens, estimate)
    is_long = sum(len(turn.content) for turn in history.turns) > LONG_CHARACTERS
    begun = await asyncio.to_thread(_begin, prompt, history) if is_long else _begin(prompt, history)
    if isinstance(begun, Compacted):
        return begun
    summary = await summarise(begun.turns, history.summary) if begun.turns else None
    return _end(prompt, history, begun, summary)


Exchange = list[Turn]  # a question and its answer


class _Dropped(NamedTuple):
    """What a summary is wanted of."""

    turns: list[Message]  # as the model is asked; none where no summary could be shown
    upto: int
    kept: list[Exchange]  # beside the summary
    unfolded: list[Exchange]  # all that no summary has


@dataclass(frozen=True)
class _Prompt:
    """What stays as it is, and how much room there is."""

    systems: list[Message]
    question: list[Message]
    budget_tokens: int
    estimate: Estimate

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], budget_tokens: int, estimate: Estimate) -> _Prompt:
        systems = [dict(message) for message in messages if message.get("role") in SYSTEM_ROLES]
        question = [dict(message) for message in messages if message.get("role") not in SYSTEM_ROLES]
        return cls(systems, question, budget_tokens, estimate)

    def around(self, preface: str, exchanges: Sequence[Exchange]) -> list[Message]:
        return [*self.systems, *_as_exchange(preface), *_messages(exchanges), *self.question]

    def fits(self, preface: str, exchanges: Sequence[Exchange], *, free_tokens: int = 0) -> bool:
        return self._size(self.around(preface, exchanges)) + free_tokens <= self.budget_tokens

    def newest(self, preface: str, exchanges: list[Exchange], *, free_tokens: int = 0) -> list[Exchange]:
        """Return as many of the newest exchanges as fit beside `preface`."""

        def last(count: int) -> list[Exchange]:
            return exchanges[len(exchanges) - count :]

        return last(most(len(exchanges), lambda count: self.fits(preface, last(count), free_tokens=free_tokens)))

    def check_question(self) -> None:
        if self.fits("", []):
            return
        asked, told = self._size(self.question), self._size(self.systems)
        raise BadRequestError(
            f"The question has about {asked:,} tokens and the system messages {told:,}; {self.budget_tokens:,} fit "
            "into what the model reads beside its answer. Shorten the question, send it in parts, or ask for a shorter "
            "answer with max_tokens."
        )

    def _size(self, messages: list[Message]) -> int:
        return self.estimate({"messages": messages}) if messages else 0


def _begin(prompt: _Prompt, history: History) -> Compacted | _Dropped:
    """Return the prompt, or what must be summarised first."""
    exchanges = _exchanges(history.turns)
    if prompt.fits("", exchanges):
        return Compacted(prompt.around("", exchanges), history.summary, history.summary_upto, "")
    prompt.check_question()
    unfolded = [exchange for exchange in exchanges if exchange[-1].position > history.summary_upto]
    if history.summary and prompt.fits(summary_preface(history.summary, left_out=0), unfolded):
        return _compacted(prompt, history, unfolded)
    kept = _kept_beside_a_summary(prompt, unfolded)
    dropped = unfolded[: len(unfolded) - len(kept)]
    if not dropped:
        return _compacted(prompt, history, kept)
    return _Dropped(_to_summarise(prompt, history, dropped, kept), dropped[-1][-1].position, kept, unfolded)


def _end(prompt: _Prompt, history: History, dropped: _Dropped, summary: str | None) -> Compacted:
    """Return the prompt with the new summary, or as it can be without one."""
    told = _within_share(prompt, (summary or "").strip())
    if told:
        return _compacted(prompt, history._replace(summary=told, summary_upto=dropped.upto), dropped.kept)
    return _compacted(prompt, history, _kept_without_a_new_summary(prompt, history, dropped.unfolded))


def _exchanges(turns: Sequence[Turn]) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for turn in turns:
        if turn.role == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(turn)
    return exchanges


def _kept_beside_a_summary(prompt: _Prompt, exchanges: list[Exchange]) -> list[Exchange]:
    """Return the newest exchanges that leave room for a summary and the next turns; at least the last, if it fits."""
    budget = prompt.budget_tokens
    free_tokens = summary_tokens(budget) + budget // GROWTH_PART
    return prompt.newest("", exchanges, free_tokens=free_tokens) or prompt.newest("", exchanges[-1:])


def _kept_without_a_new_summary(prompt: _Prompt, history: History, exchanges: list[Exchange]) -> list[Exchange]:
    """Return as many of the newest exchanges as fit beside the earlier summary and the note that others are missing."""
    earlier = _within_share(prompt, history.summary or "")
    preface = summary_preface(earlier, left_out=len(history.turns))
    return prompt.newest(preface, exchanges) or prompt.newest("", exchanges[-1:])


def _to_summarise(prompt: _Prompt, history: History, dropped: list[Exchange], kept: list[Exchange]) -> list[Message]:
    """Return what is dropped now, short enough to ask for its summary; nothing where none could be shown."""
    if not prompt.fits(summary_preface("x" * LEAST_SUMMARY_CHARACTERS, left_out=0), kept):
        return []
    budget, estimate = prompt.budget_tokens, prompt.estimate
    return shortened_turns(_messages(dropped), history.summary, budget_tokens=budget, estimate=estimate)


def _within_share(prompt: _Prompt, summary: str) -> str:
    share = summary_tokens(prompt.budget_tokens)
    return cut_to(summary, lambda text: prompt.estimate({"messages": [{"role": "user", "content": text}]}) <= share)


def _compacted(prompt: _Prompt, history: History, kept: list[Exchange]) -> Compacted:
    """Put the summary of `history` in front of the turns that are `kept`, as much of it as there is room for."""
    kept_turns = sum(map(len, kept))
    uncovered = sum(turn.position > history.summary_upto for turn in history.turns) - kept_turns
    shown = cut_to(history.summary or "", lambda text: prompt.fits(summary_preface(text, left_out=uncovered), kept))
    if len(shown) < min(LEAST_SUMMARY_CHARACTERS, len(history.summary or "")):
        shown = ""
    left_out = uncovered if shown else len(history.turns) - kept_turns
    preface = summary_preface(shown, left_out=left_out)
    if not prompt.fits(preface, kept):
        preface = ""
    note = _note(len(history.turns) - kept_turns - left_out, left_out)
    return Compacted(prompt.around(preface, kept), history.summary, history.summary_upto, note)


def _messages(exchanges: Sequence[Exchange]) -> list[Message]:
    return [{"role": turn.role, "content": turn.content} for exchange in exchanges for turn in exchange]


def _as_exchange(preface: str) -> list[Message]:
    if not preface:
        return []
    return [{"role": "user", "content": preface}, {"role": "assistant", "content": UNDERSTOOD}]


def _note(summarised: int, left_out: int) -> str:
    parts = [f"{summarised} earlier messages are in a summary"] if summarised else []
    parts += [f"{left_out} earlier messages are left out: they do not fit"] if left_out else []
    return "; ".join(parts)
