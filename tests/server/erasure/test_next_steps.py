"""What somebody is told who wants all of it gone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.server.erasure.world import NOW, World

from everswarm.schemas.server import Scope
from everswarm.server.auth.service import create_key, principal_of
from everswarm.server.batches.tables import files as batch_files
from everswarm.server.database import Database
from everswarm.server.erasure import erase


@pytest.mark.parametrize("what", ["user", "device", "interaction", "key"])
def test_whoever_is_erased_files_of_chats_of_other_keys_are_named(database: Database, world: World, what: str) -> None:
    key = principal_of(database, create_key(database, scope=Scope.USER, label="anna").key)
    world.enrols("phone")
    world.asks(key.user, "asked")
    who: dict[str, Any] = {"user": key.user, "device": "phone", "interaction": "asked", "key": key}

    def told() -> list[str]:
        steps = erase(database, world.storage, **{what: who[what]}, dry_run=True).next_steps
        return [step for step in steps if "/v1/files" in step]

    assert told() == []
    about = {"filename": "f", "purpose": "batch", "state": "processed", "size_bytes": 1}
    world.insert(batch_files, id="file-1", owner="key-of-a-worker", created_at=NOW, expires_at=NOW, **about)
    assert told() == [
        "Files of chats (/v1/files) of other keys were not looked into, such as the questions that a worker put to "
        "a teacher, which may hold corrections. They are deleted when their time is over: a worker's after 2 days."
    ]
