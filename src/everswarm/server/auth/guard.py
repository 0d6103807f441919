"""Who may pass: the dependency that guards a route, and the same for routes that read raw headers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated

from fastapi import Depends, Query, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from everswarm.errors import ForbiddenError, UnauthorizedError
from everswarm.schemas.server import Scope
from everswarm.server.auth.principal import Principal
from everswarm.server.auth.recent_keys import RecentKeys, recent_keys
from everswarm.server.auth.service import principal_of
from everswarm.server.database import Database, DatabaseDep

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="API key",
    description="A key of this server. `everswarm keys create --scope user` makes one.",
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def require(*scopes: Scope) -> Callable[..., Awaitable[Principal]]:
    """Return a dependency that lets in keys with one of `scopes`; an admin key always passes.

    The dependency raises:
        UnauthorizedError: no key, or one that is not known.
        ForbiddenError: a key with another scope.
    """

    async def check(database: DatabaseDep, credentials: Credentials) -> Principal:
        return await _let_in(database, credentials.credentials if credentials else None, scopes)

    return check


PrincipalDep = Annotated[Principal, Depends(require(*Scope))]  # any key that is known


async def acting_user(
    principal: Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))],
    user: Annotated[
        str | None,
        Query(
            max_length=200,
            pattern=r"^[^\x00]*$",
            description="For whom an administrator's application acts: the `user` of its chats. Without it, yourself.",
        ),
    ] = None,
) -> str:
    """Return whose things a request is about: those of who calls, or of the person that an admin names.

    Raises:
        ForbiddenError: another key names somebody else.
    """
    if not user or user == principal.user:
        return principal.user
    if principal.scope is not Scope.ADMIN:
        raise ForbiddenError(
            f"This asks for what is of another user; the key {principal.label!r} has the scope "
            f"{principal.scope.value}, and only one with the scope admin may act for others. Leave `user` out."
        )
    return user


ActingUserDep = Annotated[str, Depends(acting_user)]


async def authorise(headers: Iterable[tuple[bytes, bytes]], database: Database, *scopes: Scope) -> Principal:
    """Return who sends a request with these raw ASGI `headers`: what `require` does, where there is no dependency.

    Raises:
        UnauthorizedError: no key, or one that is not known.
        ForbiddenError: a key with another scope.
    """
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            return await _let_in(database, key.strip() if scheme.lower() == "bearer" else None, scopes)
    return await _let_in(database, None, scopes)


async def principal_of_cached(database: Database, key: str) -> Principal:
    """Return who holds `key`, without asking the database again within 5 s; a miss is looked up in a thread.

    A key that this process revokes is refused at once; one that another process revokes, within these 5 s.

    Raises:
        UnauthorizedError: the key is not known or was revoked.
    """
    recent = recent_keys(database)
    sha256 = hashlib.sha256(key.encode()).digest()
    found = recent.find(sha256)
    if found is None:
        return await asyncio.shield(_looking_up(recent, database, key, sha256))
    principal, is_due = found
    if is_due:
        _looking_up(recent, database, key, sha256)
    return principal


def _looking_up(recent: RecentKeys, database: Database, key: str, sha256: bytes) -> asyncio.Task[Principal]:
    """Return the look-up of a key that runs already, or begin one: many requests with one key need one answer."""
    loop = asyncio.get_running_loop()
    task = recent.looking.get(sha256)
    if task is None or task.get_loop() is not loop:
        task = recent.looking[sha256] = loop.create_task(_look_up(recent, database, key, sha256))
        task.add_done_callback(lambda done: _looked_up(recent, sha256, done))
    return task


async def _look_up(recent: RecentKeys, database: Database, key: str, sha256: bytes) -> Principal:
    revocations = recent.revocations
    try:
        principal = await run_in_threadpool(principal_of, database, key)
    except UnauthorizedError:
        recent.drop(sha256)
        raise
    recent.keep(sha256, principal, revocations=revocations)
    return principal


def _looked_up(recent: RecentKeys, sha256: bytes, done: asyncio.Task[Principal]) -> None:
    if recent.looking.get(sha256) is done:
        del recent.looking[sha256]
    if not done.cancelled():
        done.exception()  # who asked for it has been told; nobody may have


async def _let_in(database: Database, key: str | None, scopes: tuple[Scope, ...]) -> Principal:
    if not key:
        raise UnauthorizedError("This needs a key. Send it as the header: Authorization: Bearer esw_…")
    principal = await principal_of_cached(database, key)
    if not principal.may_act_as(*scopes):
        needed = " or ".join(dict.fromkeys([*(scope.value for scope in scopes), Scope.ADMIN.value]))
        raise ForbiddenError(
            f"This needs a key with the scope {needed}; the key {principal.label!r} has {principal.scope.value}."
        )
    return principal
