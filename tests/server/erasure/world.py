"""People who asked and judged, and a cycle that went all the way with its files."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Table, func, select
from tests.fakes.stage_results import ADAPTER, EVALUATION, artifact

from everswarm.identifiers import new_id
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.job import CycleParameters, Stage
from everswarm.server.cycles import repository
from everswarm.server.database import Database
from everswarm.server.feedback.tables import feedback, interactions
from everswarm.server.fleet.service import publish_release
from everswarm.server.fleet.tables import devices
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import FolderStorage, Storage

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)


class World:
    """A server's database and files, and what happens in it."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.storage: Storage = FolderStorage(folder)
        self.artifacts = ArtifactStore(str(folder), database)

    def insert(self, table: Table, **values: Any) -> None:
        with self.database.transaction() as connection:
            connection.execute(table.insert().values(**values))

    def asks(self, user: str, name: str, *, judged_by: str | None = None, **more: Any) -> str:
        """Have `user` ask something, and judge the answer."""
        values = {"sender": None, "source": "web", "created_at": NOW, "state": "complete", "response": "an answer"}
        question = [{"role": "user", "content": f"what {user} asked"}]
        self.insert(interactions, id=name, user=user, messages=question, **{**values, **more})
        self.judges(judged_by or user, name)
        return name

    def judges(self, user: str, name: str, **more: Any) -> str:
        values = {"created_at": NOW, "rating": 5, "consent": True}
        judgement = new_id()
        self.insert(feedback, id=judgement, interaction_id=name, user=user, **{**values, **more})
        return judgement

    def count(self, table: Table, *which: Any) -> int:
        with self.database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(table).where(*which)).scalar_one())

    def keeps(self, data: bytes, kind: ArtifactKind, name: str) -> dict[str, Any]:
        return self.artifacts.put_bytes(data, kind=kind, name=name).model_dump(mode="json")

    def runs_cycle(
        self,
        cycle_id: str,
        members: Mapping[str, str],
        *,
        state: str = "released",
        with_members: bool = True,
        frozen: Mapping[str, str] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Add a cycle whose dataset has `members` (interaction → user), and the snapshot those or `frozen`."""
        pseudonym = self.database.seal.pseudonym
        in_snapshot = frozen or members
        lines = [
            orjson.dumps({"schema_version": 1, "id": name, "device_id": pseudonym(user)})
            for name, user in in_snapshot.items()
        ]
        listed = "".join(f"{name}\t{pseudonym(user)}\n" for name, user in members.items())
        snapshot = self.keeps(b"\n".join(lines), ArtifactKind.SNAPSHOT, "snapshot.jsonl")
        dataset = self.keeps(f"parquet of {cycle_id}".encode(), ArtifactKind.DATASET, "dataset.parquet")
        curated: dict[str, Any] = {
            "data": dataset,
            "members": self.keeps(gzip.compress(listed.encode(), mtime=0), ArtifactKind.MEMBERS, "members.gz"),
            "review": self.keeps(f"why {cycle_id}".encode(), ArtifactKind.SUSPICIONS, "review.jsonl"),
            "split_of_user": {pseudonym(user): "train" for user in in_snapshot.values()},
        }
        if not with_members:
            del curated["members"]
        shard = self.keeps(f"targets of {cycle_id}".encode(), ArtifactKind.SOFT_TARGETS, "targets-0.parquet")
        weights = self.keeps(f"weights of {cycle_id}".encode(), ArtifactKind.ADAPTER, "adapter.safetensors")
        answers = [
            {"id": name, "question": f"what {user} asked", "reference": "r", "answers": {}}
            for name, user in members.items()
        ]
        evaluation = {**EVALUATION, "answers": answers}
        results: dict[Stage, dict[str, Any]] = {
            Stage.SNAPSHOT: {"data": snapshot, "interactions": len(lines), "incumbent": None, "split_of_user": {}},
            Stage.CURATE: curated,
            Stage.LABEL: {"shards": [shard], "dataset": dataset["sha256"]},
            Stage.DISTILL: {**ADAPTER, "weights": weights},
        }
        if state != "running":
            results[Stage.EVALUATE] = evaluation
        with self.database.transaction() as connection:
            parameters = CycleParameters(student="tiny")
            repository.insert_cycle(connection, cycle_id, parameters=parameters, trigger="manual", created_at=NOW)
            for stage, result in results.items():
                repository.insert_stage(connection, cycle_id, stage, state="done", inputs={}, created_at=NOW)
                job = repository.stage_id(cycle_id, stage)
                repository.update_stage(connection, job, result=result, finished_at=NOW)
            repository.update_cycle(connection, cycle_id, state=state)
        if state == "released":
            record = self.keeps(orjson.dumps(evaluation), ArtifactKind.RECORD, f"evaluation-{cycle_id}.json")
            with self.database.transaction() as connection:
                self.releases(connection, cycle_id, dataset=dataset["sha256"], evaluation=record["sha256"])
        return {
            "snapshot": snapshot,
            "dataset": dataset,
            "shard": shard,
            "weights": weights,
            "review": curated["review"],
        }

    def releases(self, connection: Connection, cycle_id: str, *, dataset: str, evaluation: str) -> None:
        publish_release(
            connection,
            role="ultralight",
            student="tiny",
            base=Artifact.model_validate(artifact("5", "base-gguf")),
            adapter=Artifact.model_validate(artifact("4", "adapter-gguf")),
            quantization="Q4_K_M",
            cycle_id=cycle_id,
            dataset=dataset,
            evaluation=evaluation,
            reason="better",
        )

    def enrols(self, device_id: str, *, key_id: str | None = None, release_id: str | None = None) -> None:
        about = {"name": device_id, "client_version": "1", "enrolled_at": NOW, "last_seen_at": NOW}
        self.insert(devices, device_id=device_id, key_id=key_id, release_id=release_id, **about)

    def has_file(self, named: Mapping[str, Any]) -> bool:
        return self.storage.exists(named["sha256"])
