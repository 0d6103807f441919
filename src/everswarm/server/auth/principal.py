"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass

from everswarm.schemas.server import Scope


@dataclass(frozen=True)
class Principal:
    """The holder of a key."""

    key_id: str
    scope: Scope
    label: str

    @property
    def user(self) -> str:
        """The name that the judgements of this key carry; an `Identifier`, the same for the life of the key."""
        return f"key-{self.key_id[-12:]}"  # the random end of a UUIDv7; its start is a clock that keys may share

    def may_act_as(self, *scopes: Scope) -> bool:
        """Say whether this key has one of `scopes`. An admin may do everything."""
        return self.scope is Scope.ADMIN or self.scope in scopes
