"""From the name of a role or a model to the endpoints that may answer, best first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

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

    @property
    def state(self) -> str:
        """`operational`, or what is wrong."""


E = TypeVar("E", bound=Routable)


@dataclass(frozen=True)
class ServedModel:
    """A name that a chat may ask for."""

    name: str
    roles: tuple[str, ...]  # empty for the name of a role itself
    owner: str


def candidates(endpoints: Sequence[E], targets: Sequence[str]) -> list[tuple[E, str | None]]:
    """Return the endpoints that serve one of `targets`, each with its role; None when asked for by its model's name.

    Operational ones come first; among them those of the first target, then of the second, and so on.

    Raises:
        UnavailableError: there is no endpoint at all.
        NotFoundError: none serves any of the targets.
    """
    if not endpoints:
        raise UnavailableError(
            "No endpoint is configured. Enable [engine], or add [[endpoints]] to everswarm.toml, and start again.",
            retry_after_seconds=60,
        )
    found: dict[int, tuple[E, str | None]] = {}
    for target in targets:
        for position, endpoint in enumerate(endpoints):
            if target in endpoint.roles:
                found.setdefault(position, (endpoint, target))
            elif target == endpoint.model:
                found.setdefault(position, (endpoint, None))
    if not found:
        names = ", ".join(model.name for model in served_models(endpoints))
        raise NotFoundError(f"There is no model '{targets[0]}' here. There are: everswarm, {names}.")
    return sorted(found.values(), key=lambda item: item[0].state != OPERATIONAL)  # stable: the order above stays


def served_models(endpoints: Sequence[Routable]) -> list[ServedModel]:
    """Return the roles that are served, then the models."""
    roles = dict.fromkeys(role for endpoint in endpoints for role in endpoint.roles)
    models: dict[str, list[str]] = {}
    for endpoint in endpoints:
        models.setdefault(endpoint.model, []).extend(role for role in endpoint.roles)
    named = [ServedModel(role, (), "everswarm") for role in roles]
    return named + [ServedModel(name, tuple(dict.fromkeys(its)), name.split("/")[0]) for name, its in models.items()]
