"""From the name of a role or a model to the endpoints that may answer. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from everswarm.errors import NotFoundError, UnavailableError

OPERATIONAL = "operational"


class Routable(Protocol):
    """What routing needs to know of an endpoint."""

    @property
    def model(self) -> str:
        """Full name of what it serves."""

    @property
    def roles(self) -> Sequence[str]:
        """What the model is for."""


E = TypeVar("E", bound=Routable)


class Candidate(NamedTuple, Generic[E]):
    """An endpoint, and the role in which it would answer; None when asked for by its model's name."""

    endpoint: E
    role: str | None


@dataclass(frozen=True)
class ServedModel:
    """A name that a chat may ask for."""

    name: str
    roles: tuple[str, ...]  # empty for the name of a role itself
    owner: str


def candidates(endpoints: Sequence[E], targets: Sequence[str]) -> list[list[Candidate[E]]]:
    """Return the endpoints that serve one of `targets`: a group for each target, the most wanted first.

    Within a group they stand as declared. An endpoint that serves several targets is in the first group only.

    Raises:
        UnavailableError: there is no endpoint at all.
        NotFoundError: none serves any of the targets.
    """
    if not endpoints:
        raise UnavailableError(
            "No endpoint is configured. Enable [engine], or add [[endpoints]] to everswarm.toml, and start again.",
            retry_after_seconds=60,
        )
    groups: list[list[Candidate[E]]] = []
    taken: set[int] = set()
    for target in targets:
        group = []
        for position, endpoint in enumerate(endpoints):
            if position not in taken and (target in endpoint.roles or target == endpoint.model):
                taken.add(position)
                group.append(Candidate(endpoint, target if target in endpoint.roles else None))
        if group:
            groups.append(group)
    if not groups:
        names = ", ".join(model.name for model in served_models(endpoints))
        raise NotFoundError(f"There is no model '{targets[0]}' here. There are: everswarm, {names}.")
    return groups


def served_models(endpoints: Sequence[Routable]) -> list[ServedModel]:
    """Return the roles that are served, then the models."""
    roles = dict.fromkeys(role for endpoint in endpoints for role in endpoint.roles)
    models: dict[str, list[str]] = {}
    for endpoint in endpoints:
        models.setdefault(endpoint.model, []).extend(role for role in endpoint.roles)
    named = [ServedModel(role, (), "everswarm") for role in roles]
    return named + [ServedModel(name, tuple(dict.fromkeys(its)), name.split("/")[0]) for name, its in models.items()]
