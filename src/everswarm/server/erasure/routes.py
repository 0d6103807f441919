"""`/api/erasures`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from everswarm.errors import ForbiddenError, NotFoundError
from everswarm.schemas.erasure import Erasure, ErasureRequest
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal, require
from everswarm.server.database import Database, DatabaseDep
from everswarm.server.erasure.service import erase
from everswarm.server.feedback.repository import device_of, find_interaction
from everswarm.server.fleet.repository import device_of_key
from everswarm.server.gateway.cache import AnswerCache
from everswarm.server.registry.storage import open_storage
from everswarm.settings import Settings

router = APIRouter(prefix="/api", tags=["erasures"])

Person = Annotated[Principal, Depends(require(Scope.USER, Scope.DEVICE))]


@router.post("/erasures")
def erase_what_is_named(http: Request, database: DatabaseDep, principal: Person, request: ErasureRequest) -> Erasure:
    """Erase what is stored of a user, a device or one interaction, and say what was trained with it.

    A key of a user or a device erases itself, which `{}` means, or an interaction of its own; only an administrator has
    files deleted.
    """
    settings: Settings = http.app.state.settings
    cache: AnswerCache | None = http.app.state.gateway.answer_cache
    store = open_storage(settings.artifacts_root)
    if principal.scope is Scope.ADMIN:
        return erase(database, store, cache=cache, **request.model_dump())
    named = own_name(database, principal, request)
    done = erase(database, store, cache=cache, dry_run=request.dry_run, **named)
    return done.model_copy(update={"seen": [seen.model_copy(update={"devices": []}) for seen in done.seen]})


def own_name(database: Database, principal: Principal, request: ErasureRequest) -> dict[str, Any]:
    """Return what to erase for somebody who may erase only themselves.

    A device may have given itself any name, so it is known by its key and not by that.

    Raises:
        ForbiddenError: it names somebody else, or wants files deleted, which hold others' texts too.
        NotFoundError: it names an interaction that is not there, or not theirs; the two look the same.
    """
    if request.files:
        raise ForbiddenError(
            "Files of datasets hold other people's texts too, and only an admin key may have them deleted. Leave "
            "`files` out, and ask an administrator for the rest."
        )
    with database.read() as connection:
        own = {
            None,
            principal.user,
            device_of_key(connection, principal.key_id),
            device_of(connection, principal.user),
        }
        owned = request.interaction and find_interaction(connection, request.interaction)
    if request.interaction is not None:
        if not owned or principal.user not in (owned.user, owned.sender):
            raise NotFoundError(
                f"There is no interaction {request.interaction!r} of yours. GET /api/interactions lists those that are."
            )
        return {"interaction": request.interaction}
    if (request.user or request.device) not in own:
        raise ForbiddenError(
            f"The key {principal.label!r} has the scope {principal.scope.value} and may erase only itself: "
            f"user {principal.user}. Others are erased with an admin key."
        )
    return {"key": principal}
