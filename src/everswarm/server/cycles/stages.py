"""What a cycle does in the server: freezing the feedback, queueing what is suspicious, and deciding about the release.

Each is idempotent: done twice, after a crash, it gives the same record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from everswarm.errors import NotEnoughFeedbackError, StageFailedError
from everswarm.schemas.adapter import Adapter, ExportedAdapter
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.dataset import Dataset, Snapshot, Split
from everswarm.schemas.evaluation import Evaluation, Incumbent
from everswarm.schemas.job import CycleParameters, Stage
from everswarm.schemas.review import Suspicion
from everswarm.server.cycles import repository
from everswarm.server.database import Database
from everswarm.server.experiments.promotion import decide
from everswarm.server.feedback import stats
from everswarm.server.feedback.freezing import Tally, frozen_interactions
from everswarm.server.feedback.reviews.service import store_suspicions
from everswarm.server.feedback.scrubbing import scrubber_of
from everswarm.server.fleet.service import latest_release, publish_release
from everswarm.server.registry.datasets import kept_datasets
from everswarm.server.registry.repository import forget_artifact
from everswarm.server.registry.service import ArtifactStore
from everswarm.server.registry.storage import Storage
from everswarm.settings import ScrubberName

MINIMUM_PEOPLE = 3  # training, validation and test share nobody
FREEZES_LIMIT = 5  # in one attempt; an erasure while a snapshot is taken makes another one necessary
# what holds texts, or says whose they are; weights stay
OF_ONE_SNAPSHOT = frozenset(
    {
        ArtifactKind.SNAPSHOT,
        ArtifactKind.DATASET,
        ArtifactKind.MEMBERS,
        ArtifactKind.SUSPICIONS,
        ArtifactKind.SOFT_TARGETS,
        ArtifactKind.CHECKPOINT,
    }
)


def freeze(
    database: Database,
    artifacts: ArtifactStore,
    storage: Storage,
    cycle_id: str,
    *,
    attempt: int,
    scrubber: ScrubberName,
) -> None:
    """Record the snapshot of a cycle, once; one that an erasure overtook is thrown away and taken anew.

    Raises:
        StageFailedError: the cycle was cancelled or retried, or something was erased during each of 5 snapshots.
    """
    with database.transaction() as connection:
        parameters = parameters_under_way(connection, cycle_id, attempt=attempt)
        begun = datetime.now(UTC)  # we have the turn: an erasure has ended, or comes later and is dated later
        repository.insert_stage(connection, cycle_id, Stage.SNAPSHOT, state="running", inputs={}, created_at=begun)
        if Stage.SNAPSHOT in repository.results_of(connection, cycle_id):
            return
    for _ in range(FREEZES_LIMIT):
        snapshot = take_snapshot(
            database, artifacts, role=parameters.role, student=parameters.student, scrubber=scrubber
        )
        with database.transaction() as connection:
            parameters_under_way(connection, cycle_id, attempt=attempt)
            now = datetime.now(UTC)
            if not repository.erased_since(connection, begun):
                done = snapshot.model_dump(mode="json")
                job_id = repository.stage_id(cycle_id, Stage.SNAPSHOT)
                repository.update_stage(connection, job_id, state="done", result=done, finished_at=now)
                return
            forget_files(connection, storage, {snapshot.data.sha256}, cycle_id=cycle_id)
        begun = now
    raise StageFailedError(
        f"Something was erased while the feedback was frozen, {FREEZES_LIMIT} times running, so there is no snapshot. "
        f"When the erasing is over: everswarm cycle retry {cycle_id}"
    )


def begin_anew(connection: Connection, storage: Storage, cycle_id: str) -> None:
    """Forget all stages of a cycle and delete the files that came of its snapshot: something in it was erased."""
    made = repository.artifacts_of(connection, cycle_id)
    stale = {artifact.sha256 for artifact in made if artifact.kind in OF_ONE_SNAPSHOT}
    forget_files(connection, storage, stale, cycle_id=cycle_id)
    repository.delete_stages(connection, cycle_id)


def forget_files(
    connection: Connection,
    storage: Storage,
    digests: Collection[str],
    *,
    cycle_id: str | None = None,
    dataset: str | None = None,
) -> None:
    """Delete artifacts that no cycle but `cycle_id` and no dataset without a cycle but the one called `dataset` needs.

    Afterwards nothing would name them, so no erasure could find them.
    """
    needed = {artifact.sha256 for artifact in repository.artifacts_of_others(connection, cycle_id)}
    for kept in kept_datasets(connection, storage):
        if kept.name != dataset:
            needed.update(kept.dataset.card.parents)
            needed |= {artifact.sha256 for artifact in repository.artifacts_in(kept.dataset.model_dump(mode="json"))}
    for sha256 in set(digests) - needed:
        storage.delete(sha256)  # first: what is cut off here is done again
        forget_artifact(connection, sha256)


def take_snapshot(
    database: Database, artifacts: ArtifactStore, *, role: str, student: str, scrubber: ScrubberName
) -> Snapshot:
    """Freeze the judged interactions as JSON lines, with what the candidate will be measured against.

    What is frozen leaves the server: only what was consented to, with personal data masked and people by pseudonyms.
    """
    count, tally = 0, Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.jsonl"
        with database.read() as connection, path.open("w", encoding="utf-8", newline="\n") as file:
            frozen = frozen_interactions(connection, seal=database.seal, scrubber=scrubber_of(scrubber), tally=tally)
            for interaction in frozen:
                file.write(interaction.model_dump_json() + "\n")
                count += 1
            incumbent = _incumbent(connection, role=role, student=student)
            latest_dataset = repository.latest_result(connection, Stage.CURATE, role=role)
        data = artifacts.put_file(path, kind=ArtifactKind.SNAPSHOT)
    split_of_user: dict[str, Split] = {}
    if latest_dataset is not None:
        split_of_user = Dataset.model_validate(latest_dataset).split_of_user
    return Snapshot(
        data=data,
        interactions=count,
        without_consent=tally.without_consent,
        masked=dict(sorted(tally.masked.items())),
        incumbent=incumbent,
        split_of_user=split_of_user,
    )


def conclude(
    database: Database, artifacts: ArtifactStore, cycle_id: str, *, attempt: int, margin: float
) -> dict[str, Any]:
    """Let the gate decide; publish a release if it says so, and end the cycle, in one transaction.

    Raises:
        StageFailedError: the cycle was cancelled, or this is no longer its attempt; nothing is published.
    """
    with database.transaction() as connection:
        parameters = parameters_under_way(connection, cycle_id, attempt=attempt)
        results = repository.results_of(connection, cycle_id)
    evaluation = Evaluation.model_validate(results[Stage.EVALUATE])
    exported = ExportedAdapter.model_validate(results[Stage.EXPORT])
    dataset = Dataset.model_validate(results[Stage.CURATE])
    decision = decide(evaluation, margin=margin)
    record = artifacts.put_bytes(
        evaluation.model_dump_json().encode(), kind=ArtifactKind.RECORD, name=f"evaluation-{cycle_id}.json"
    )
    result: dict[str, Any] = {"decision": decision.model_dump(mode="json"), "release": None}
    with database.transaction() as connection:
        parameters_under_way(connection, cycle_id, attempt=attempt)
        release_id = None
        if decision.promote:
            release = publish_release(
                connection,
                role=parameters.role,
                student=parameters.student,
                base=exported.base_gguf,
                adapter=exported.adapter_gguf,
                quantization=exported.quantization,
                cycle_id=cycle_id,
                dataset=dataset.data.sha256,
                evaluation=record.sha256,
                reason=decision.reason,
            )
            release_id = release.id
            result["release"] = release.model_dump(mode="json")
        now = datetime.now(UTC)
        repository.insert_stage(connection, cycle_id, Stage.RELEASE, state="done", inputs={}, created_at=now)
        job_id = repository.stage_id(cycle_id, Stage.RELEASE)
        repository.update_stage(connection, job_id, state="done", result=result, finished_at=now)
        repository.update_cycle(
            connection,
            cycle_id,
            state="released" if decision.promote else "held",
            reason=decision.reason,
            release_id=release_id,
            finished_at=now,
        )
    return result


def parameters_under_way(connection: Connection, cycle_id: str, *, attempt: int) -> CycleParameters:
    """Return what the cycle is to do.

    Raises:
        StageFailedError: it was cancelled or has ended, or a retry took over.
    """
    cycle = repository.find_cycle(connection, cycle_id)
    if cycle is None or not repository.is_under_way(connection, cycle_id, attempt=attempt):
        raise StageFailedError(f"Attempt {attempt} of cycle {cycle_id} is over: it was cancelled, or retried.")
    return cycle.parameters


def check_enough_feedback(database: Database, *, minimum: int) -> None:
    """Refuse a cycle that could not succeed, before anything is started.

    Raises:
        NotEnoughFeedbackError: says how many usable judgements there are, of how many people, and what is needed.
    """
    found = stats(database)
    if found.usable >= minimum and found.people >= MINIMUM_PEOPLE:
        return
    missing = minimum - found.usable
    wish = f"Rate and correct {missing} more" if missing > 0 else "Let more people rate and correct"
    raise NotEnoughFeedbackError(
        f"A cycle needs at least {minimum} interactions that were corrected, or rated 4 or 5, with "
        f"consent to training, of at least {MINIMUM_PEOPLE} people; there are {found.usable} (of {found.judged} "
        f"judged), of {found.people} people. {wish}, or import some: everswarm feedback import FILE."
    )


def queue_for_review(database: Database, artifacts: ArtifactStore, cycle_id: str) -> None:
    """Let people look at what the curation of a cycle set aside; a second time changes nothing."""
    with database.read() as connection:
        dataset = Dataset.model_validate(repository.results_of(connection, cycle_id)[Stage.CURATE])
    store_review(database, artifacts, dataset)


def store_review(database: Database, artifacts: ArtifactStore, dataset: Dataset) -> None:
    """Put what a dataset was kept clear of into the review queue."""
    if dataset.review is None:
        return
    with artifacts.open(dataset.review.sha256) as file, database.transaction() as connection:
        suspicions = (Suspicion.model_validate_json(line) for line in file)
        store_suspicions(connection, suspicions, dataset=dataset.data.sha256)


def _incumbent(connection: Connection, *, role: str, student: str) -> Incumbent | None:
    """Return what is in use, unless it adapts another student: an adapter fits its own base only."""
    release = latest_release(connection, role)
    if release is None or release.adapter is None or release.student != student:
        return None
    adapter = Adapter.model_validate(repository.results_of(connection, release.cycle_id)[Stage.DISTILL])
    return Incumbent(
        release_id=release.id,
        adapter_gguf=release.adapter,
        weights=adapter.weights,
        config=adapter.config,
        base_gguf=release.base,
    )
