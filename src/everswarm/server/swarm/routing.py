"""Who answers when nobody in particular was asked for, and how: decided over signals, without a token. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast

from everswarm.server.swarm.classifier import MARGIN, Classifier
from everswarm.server.swarm.kinds import Kind, StrategyName
from everswarm.server.swarm.signals import PARTS, Signals

SWARM = "everswarm"  # the model name that leaves the choice to us
PRIMARY, COORDINATOR = "primary", "coordinator"

LONG_WORDS = 120  # a text of so many, in which the rules see nothing, may be about anything
_TIME_WORDS = 30  # of a question that is about the date and nothing else
_FOLLOW_UP_WORDS = 12  # such as `and now make it faster`
_UNREAD_CHARACTERS = 20  # of a text in a script that the rules cannot read

DEFAULT_STRATEGIES: Mapping[Kind, StrategyName] = {"arithmetic": "calculate"}  # all others: `single`
_LOOKUPS: Mapping[Kind, str] = {"time": "clock", "documents": "documents"}  # built-in tools whose result is needed
_REASONS: Mapping[Kind, str] = {
    "arithmetic": "a sum",
    "mathematics": "a problem with a number as its answer",
    "code": "code",
    "planning": "planning",
    "parts": "many parts",
    "time": "a question about the date or the time",
    "documents": "a question about their own documents",
    "tools": "something that a tool is for",
    "conversation": "small talk",
    "other": "anything else",
}
_EXPLAINED: Mapping[Kind, frozenset[Kind]] = {  # what belongs to a kind, and is no sign of another beside it
    "code": frozenset({"parts", "time"}),  # a program is described in points
    "mathematics": frozenset({"planning", "time"}),  # `first she pays for a phone plan, then …`
    "documents": frozenset({"time"}),
    "parts": frozenset({"time"}),
    "planning": frozenset({"time"}),
}


class Route(NamedTuple):
    """The role that answers, and how it is asked."""

    kind: Kind  # what the request is about
    role: str
    strategy: StrategyName
    reason: str  # for people
    is_sure: bool  # else it may be worth asking the coordinator
    lookups: tuple[str, ...] = ()  # built-in tools to ask before the model: `calculator`, `clock`, `documents`


def route(
    signals: Signals,
    *,
    good_at: Mapping[str, Sequence[str]],
    served: Collection[str],
    strategies: Mapping[str, str],
    tools_wanted: bool = False,
    has_documents: bool = False,
    only_single: bool = False,
    is_shaped: bool = False,
    classifier: Classifier | None = None,
) -> Route:
    """Choose a role and a strategy.

    Args:
        signals: what can be seen of the request.
        good_at: the kinds that each role is good at; an earlier role is preferred.
        served: the roles that an endpoint serves.
        strategies: by kind, where the settings name one.
        tools_wanted: a configured tool is for just this.
        has_documents: whoever asks has documents to search.
        only_single: the request can only be passed on as it is: it has tools of its own, `n` or `logprobs`.
        is_shaped: the answer should have a form that only a model can give it: a schema, a system prompt.
        classifier: learnt from what people thought of earlier answers.
    """
    kinds = _kinds(signals, tools_wanted=tools_wanted, has_documents=has_documents)
    kind = kinds[0]
    role, reason = _role(kind, good_at, served)
    strategy = _strategy(kind, strategies, only_single=only_single)
    is_sure = not _is_opaque(signals, kind) and all(
        (_role(other, good_at, served)[0], _strategy(other, strategies, only_single=only_single)) == (role, strategy)
        for other in kinds[1:]
    )
    if classifier is not None and kind != "arithmetic":
        preferred = classifier.prefer(signals, served, over=role)
        if preferred is not None and preferred[1] >= MARGIN:
            reason = f"{reason}; such answers of the {preferred[0]} were liked more than those of the {role}"
            role, is_sure = preferred[0], True
    lookups = () if only_single else _lookups(kind, signals)
    if strategy == "calculate" and is_shaped:
        strategy, lookups = "single", ("calculator",)  # the model words what the calculator knows
    return Route(kind, role, strategy, reason, is_sure, lookups)


def _kinds(signals: Signals, *, tools_wanted: bool, has_documents: bool) -> list[Kind]:
    """Return what the request may be about, the likeliest first; there is always one."""
    if signals.sum is not None:
        return ["arithmetic"]
    if tools_wanted:
        return ["tools"]
    signs: list[tuple[Kind, bool]] = [
        ("documents", signals.documents and has_documents),
        ("code", signals.code),
        ("mathematics", signals.mathematics),
        ("parts", signals.parts >= PARTS),
        ("planning", signals.planning),
        ("time", signals.time and signals.words <= _TIME_WORDS),
        ("conversation", signals.small_talk),
    ]
    found = [kind for kind, is_there in signs if is_there]
    if not found:
        return ["tools" if signals.wants_tools else "other"]
    return [found[0], *(kind for kind in found[1:] if kind not in _EXPLAINED.get(found[0], ()))]


def _is_opaque(signals: Signals, kind: Kind) -> bool:
    """Say whether the rules have seen nothing where there may be something."""
    if kind != "other":
        return False
    return (
        signals.words >= LONG_WORDS
        or (signals.script != "latin" and signals.characters >= _UNREAD_CHARACTERS)
        or (signals.earlier_code and signals.words <= _FOLLOW_UP_WORDS)
    )


def _role(kind: Kind, good_at: Mapping[str, Sequence[str]], served: Collection[str]) -> tuple[str, str]:
    """Return who answers a request of `kind`, and why."""
    good = [role for role, kinds in good_at.items() if kind in kinds]
    for role in good:
        if role in served:
            return role, _REASONS[kind]
    fallback = PRIMARY if PRIMARY in served else next(iter(served), PRIMARY)
    if not good:
        return fallback, _REASONS[kind]
    return fallback, f"{_REASONS[kind]}; the {good[0]}, which is good at {kind}, has no endpoint"


def _strategy(kind: Kind, strategies: Mapping[str, str], *, only_single: bool) -> StrategyName:
    if only_single:
        return "single"
    named = strategies.get(kind)
    strategy = cast(StrategyName, named) if named else DEFAULT_STRATEGIES.get(kind, "single")
    return strategy if strategy != "calculate" or kind == "arithmetic" else "single"


def _lookups(kind: Kind, signals: Signals) -> tuple[str, ...]:
    if kind in ("arithmetic", "tools", "code"):
        return ()
    needed = [_LOOKUPS[kind]] if kind in _LOOKUPS else []
    if signals.time and "clock" not in needed:
        needed.append("clock")
    return tuple(needed)
