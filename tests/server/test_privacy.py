"""What a key of a user or a device must not see: other people's words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.fakes.stage_results import EVALUATION, result_of

from everswarm.errors import ForbiddenError
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.job import WORKER_STAGES, CycleParameters, Stage
from everswarm.schemas.server import Scope
from everswarm.server.auth import Principal
from everswarm.server.cycles import repository
from everswarm.server.cycles.routes import _readable as readable_cycle
from everswarm.server.database import Database
from everswarm.server.registry.routes import _readable as readable_artifact

ANSWER = {"id": "i1", "question": "my secret question", "reference": "r", "answers": {}}


def principal(scope: Scope) -> Principal:
    return Principal(key_id="k", scope=scope, label="l")


def artifact(kind: ArtifactKind) -> Artifact:
    return Artifact(sha256="a" * 64, size_bytes=1, kind=kind, name="f")


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE])
@pytest.mark.parametrize("kind", [kind for kind in ArtifactKind if "gguf" not in kind])
def test_people_and_devices_fetch_only_what_ships(scope: Scope, kind: ArtifactKind) -> None:
    with pytest.raises(ForbiddenError, match=f"This artifact is a {kind.value}"):
        readable_artifact(artifact(kind), principal(scope))


@pytest.mark.parametrize("scope", [Scope.USER, Scope.DEVICE])
@pytest.mark.parametrize("kind", [ArtifactKind.BASE_GGUF, ArtifactKind.ADAPTER_GGUF])
def test_everyone_fetches_what_ships(scope: Scope, kind: ArtifactKind) -> None:
    assert readable_artifact(artifact(kind), principal(scope)).kind == kind


@pytest.mark.parametrize(("scope", "sees"), [(Scope.USER, False), (Scope.DEVICE, False), (Scope.ADMIN, True)])
def test_a_cycle_shows_people_its_scores_and_nobody_elses_words(database: Database, scope: Scope, sees: bool) -> None:
    now = datetime.now(UTC)
    with database.transaction() as connection:
        repository.insert_cycle(
            connection, "c1", parameters=CycleParameters(student="tiny"), trigger="manual", created_at=now
        )
        for stage in WORKER_STAGES:
            result: dict[str, Any] = {**result_of(stage)}
            if stage == Stage.EVALUATE:
                result = {**EVALUATION, "answers": [ANSWER]}
            repository.insert_stage(connection, "c1", stage, state="done", inputs={}, created_at=now)
            repository.update_stage(connection, repository.stage_id("c1", stage), result=result)
        cycle = repository.find_cycle(connection, "c1")
    assert cycle is not None
    told = readable_cycle(cycle, principal(scope)).model_dump_json()
    assert ("my secret question" in told) is sees
    assert ("user0" in told) is sees
    assert "bits_per_byte" in told
