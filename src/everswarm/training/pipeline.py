"""The story: curate → label → distill → export → evaluate. Each stage takes records and returns a record.

Stages do not know each other; what one needs of another is handed to it here, by digest, through the workspace.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everswarm.errors import BadRequestError, StageFailedError
from everswarm.schemas.adapter import Adapter, ExportedAdapter
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.base import Record
from everswarm.schemas.dataset import Dataset, Snapshot
from everswarm.schemas.evaluation import Evaluation, Incumbent
from everswarm.schemas.job import Job, Stage
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets
from everswarm.settings import Settings
from everswarm.training.models import StudentWeights, student_weights
from everswarm.training.workspace import Workspace

if TYPE_CHECKING:
    from everswarm.training.curation import Curated


def run_stage(job: Job, workspace: Workspace, settings: Settings) -> Record:
    """Do one stage of one cycle and return its record."""
    stages = {
        Stage.CURATE: curate_stage,
        Stage.LABEL: label_stage,
        Stage.DISTILL: distill_stage,
        Stage.EXPORT: export_stage,
        Stage.EVALUATE: evaluate_stage,
    }
    return stages[job.stage](job, workspace, settings)


def curate_stage(job: Job, workspace: Workspace, settings: Settings) -> Dataset:
    """Judged interactions → dataset."""
    from everswarm.training.curation import curate, engine_of, suite_fingerprints
    from everswarm.training.evaluation import general_suite

    snapshot = Snapshot.model_validate(job.inputs[Stage.SNAPSHOT])

    def read_so_far(done_bytes: int, total_bytes: int) -> None:
        workspace.report(done_bytes, total_bytes, "reading the judged interactions, in bytes")

    read_so_far(0, snapshot.data.size_bytes)
    general = [(item.messages[-1].content, item.target) for item in general_suite()]
    curated = curate(
        workspace.fetch(snapshot.data),
        snapshot,
        out_dir=workspace.folder,
        seed=job.parameters.seed,
        minimum_examples=job.parameters.minimum_examples,
        rules=job.parameters.curation,
        train_examples=job.parameters.train_examples,
        suites=suite_fingerprints({"general": general}),
        engine=engine_of(settings.curation),
        on_progress=read_so_far,
    )
    dataset = stored_dataset(curated, workspace.store)
    kept = sum(curated.card.examples.values())
    workspace.report(snapshot.data.size_bytes, snapshot.data.size_bytes, f"{kept} examples kept")
    return dataset


def stored_dataset(curated: Curated, store: Callable[..., Artifact]) -> Dataset:
    """Return the record of a dataset version whose files `store(path, kind=…)` has taken in."""

    def stored(path: Path | None, kind: ArtifactKind) -> Artifact | None:
        return None if path is None else store(path, kind=kind)

    files = curated.files
    return Dataset(
        data=store(files.examples, kind=ArtifactKind.DATASET),
        preferences=stored(files.preferences, ArtifactKind.DATASET),
        desirabilities=stored(files.desirabilities, ArtifactKind.DATASET),
        members=stored(files.members, ArtifactKind.MEMBERS),
        review=stored(files.review, ArtifactKind.SUSPICIONS),
        card=curated.card,
        split_of_user=curated.split_of_user,
    )


def label_stage(job: Job, workspace: Workspace, settings: Settings) -> SoftTargets:
    """Dataset → soft targets of the teachers, shard by shard; finished shards survive a crash."""
    from everswarm.training.chosen_teachers import TeacherFinder
    from everswarm.training.curation import TASKS, read_examples
    from everswarm.training.distillation import StudentWriter, label, load_recipe

    dataset = Dataset.model_validate(job.inputs[Stage.CURATE])
    unknown = {task for asked in job.parameters.teachers for task in asked.task_weights} - set(TASKS)
    if unknown:
        raise BadRequestError(
            f"A teacher's task_weights name {', '.join(sorted(unknown))}; the tasks are {', '.join(TASKS)}."
        )
    weights = _student(job, workspace, settings)
    examples = read_examples(workspace.fetch(dataset.data), split="train")
    finder = TeacherFinder(
        student=job.parameters.student,
        weights=weights,
        models_dir=settings.models_dir,
        threads=settings.worker.threads,
        workspace=workspace,
    )
    recipe = load_recipe(job.parameters.recipe)
    rollouts = StudentWriter(
        weights.folder, None, recipe.rollout_share, job.parameters.seed, threads=settings.worker.threads
    )

    def keep_shard(path: Path) -> Any:
        return workspace.store(path, kind=ArtifactKind.SOFT_TARGETS)

    def remember(checkpoint: LabelCheckpoint) -> None:
        workspace.save_checkpoint(checkpoint.model_dump(mode="json"))

    return label(
        examples,
        dataset=dataset.data.sha256,
        teachers=[finder.find(asked) for asked in job.parameters.teachers],
        out_dir=workspace.folder,
        done=LabelCheckpoint.model_validate(job.checkpoint or {}),
        store_shard=keep_shard,
        on_checkpoint=remember,
        on_progress=workspace.report,
        rollouts=rollouts if recipe.rollout_share else None,
    )


def distill_stage(job: Job, workspace: Workspace, settings: Settings) -> Adapter:
    """Dataset + soft targets → adapter; resumes from the last checkpoint."""
    from everswarm.training.curation import read_examples
    from everswarm.training.distillation import distill, load_recipe

    dataset = Dataset.model_validate(job.inputs[Stage.CURATE])
    targets = SoftTargets.model_validate(job.inputs[Stage.LABEL])
    weights = _student(job, workspace, settings)
    recipe = load_recipe(job.parameters.recipe)
    if job.parameters.epochs is not None:
        recipe = recipe.model_copy(update={"epochs": job.parameters.epochs})
    resume_from = None
    if job.checkpoint:
        resume_from = unpack(
            workspace.fetch(Artifact.model_validate(job.checkpoint["archive"])),
            workspace.folder / f"resume-{job.attempt}",
        )

    def keep_checkpoint(folder: Path, step: int) -> None:
        archive = pack(folder, workspace.folder / f"checkpoint-{step}.tar")
        artifact = workspace.store(archive, kind=ArtifactKind.CHECKPOINT)
        archive.unlink()
        workspace.save_checkpoint({"step": step, "archive": artifact.model_dump(mode="json")})

    done = distill(
        examples=read_examples(workspace.fetch(dataset.data), split="train"),
        weights=weights.folder,
        targets=targets,
        shards=[workspace.fetch(shard) for cache in targets.caches for shard in cache.shards],
        recipe=recipe,
        seed=job.parameters.seed,
        student=job.parameters.student,
        work_dir=workspace.folder / f"run-{job.attempt}",
        resume_from=resume_from,
        threads=settings.worker.threads,
        on_progress=workspace.report,
        on_checkpoint=keep_checkpoint,
    )
    return Adapter(
        student=job.parameters.student,
        base_weights_sha256=weights.sha256,
        weights=workspace.store(done.adapter_dir / "adapter_model.safetensors", kind=ArtifactKind.ADAPTER),
        config=workspace.store(done.adapter_dir / "adapter_config.json", kind=ArtifactKind.ADAPTER_CONFIG),
        recipe=recipe,
        seed=job.parameters.seed,
        dataset=dataset.data.sha256,
        soft_targets=targets.digest,
        steps=done.steps,
        trained_tokens=done.trained_tokens,
        trainable_parameters=done.trainable_parameters,
        curve=done.curve,
    )


def export_stage(job: Job, workspace: Workspace, settings: Settings) -> ExportedAdapter:
    """Adapter → GGUF files that llama.cpp loads."""
    from everswarm.training.export import base_gguf, export_adapter

    adapter = Adapter.model_validate(job.inputs[Stage.DISTILL])
    weights = _base_of(adapter, job, workspace, settings)
    workspace.report(0, 2, "converting the base model, once")
    base = base_gguf(job.parameters.student, weights=weights, models_dir=settings.models_dir)
    workspace.report(1, 2, "converting the adapter")
    gguf = export_adapter(
        adapter_dir=_adapter_folder(workspace, adapter.weights, adapter.config, name="candidate"),
        hf_folder=weights.folder,
        models_dir=settings.models_dir,
        out_path=workspace.folder / "adapter.gguf",
    )
    return ExportedAdapter(
        adapter=adapter,
        adapter_gguf=workspace.store(gguf, kind=ArtifactKind.ADAPTER_GGUF),
        base_gguf=workspace.store(base.path, kind=ArtifactKind.BASE_GGUF),
        quantization=base.quantization,
        note=base.note,
    )


def evaluate_stage(job: Job, workspace: Workspace, settings: Settings) -> Evaluation:
    """Base, candidate and the release in use on the held-out split, as HF weights and as what ships."""
    from everswarm.training.curation import read_examples
    from everswarm.training.evaluation import AdapterFiles, evaluate, general_suite

    snapshot = Snapshot.model_validate(job.inputs[Stage.SNAPSHOT])
    dataset = Dataset.model_validate(job.inputs[Stage.CURATE])
    exported = ExportedAdapter.model_validate(job.inputs[Stage.EXPORT])
    weights = _base_of(exported.adapter, job, workspace, settings)
    incumbent = snapshot.incumbent
    if incumbent is not None and incumbent.base_gguf.sha256 != exported.base_gguf.sha256:
        incumbent = None  # an adapter of another base cannot be scored on this one: the new base is the baseline
    candidate = AdapterFiles(
        folder=_adapter_folder(workspace, exported.adapter.weights, exported.adapter.config, name="candidate"),
        gguf=workspace.fetch(exported.adapter_gguf),
    )
    found = evaluate(
        test=read_examples(workspace.fetch(dataset.data), split="test"),
        general=general_suite(),
        base_hf=weights.folder,
        base_gguf=workspace.fetch(exported.base_gguf),
        candidate=candidate,
        incumbent=_incumbent(workspace, incumbent),
        work_dir=workspace.folder,
        answer_limit=job.parameters.evaluation_answers,
        seed=job.parameters.seed,
        threads=settings.worker.threads,
        on_progress=workspace.report,
    )
    return Evaluation(
        dataset=dataset.data.sha256,
        adapter=exported.adapter.weights.sha256,
        adapter_gguf=exported.adapter_gguf.sha256,
        base_gguf=exported.base_gguf.sha256,
        incumbent_gguf=incumbent.adapter_gguf.sha256 if incumbent else None,
        engines=found.engines,
        scores=found.scores,
        comparisons=found.comparisons,
        answers=found.answers,
    )


def _student(job: Job, workspace: Workspace, settings: Settings) -> StudentWeights:
    def note(text: str) -> None:
        workspace.report(0, 0, text)

    return student_weights(job.parameters.student, settings.models_dir, on_progress=note)


def _base_of(adapter: Adapter, job: Job, workspace: Workspace, settings: Settings) -> StudentWeights:
    """Return the student's weights, which must be those that the adapter was trained on.

    Raises:
        StageFailedError: this machine has others.
    """
    weights = _student(job, workspace, settings)
    if weights.sha256 != adapter.base_weights_sha256:
        raise StageFailedError(
            f"The adapter was trained on the weights {adapter.base_weights_sha256[:12]} of {adapter.student}; this "
            f"worker has {weights.sha256[:12]} in {weights.folder}. Remove that folder to have it made again, or run "
            "all stages of a cycle on workers with the same version of everswarm."
        )
    return weights


def _incumbent(workspace: Workspace, incumbent: Incumbent | None) -> Any:
    from everswarm.training.evaluation import AdapterFiles

    if incumbent is None:
        return None
    return AdapterFiles(
        folder=_adapter_folder(workspace, incumbent.weights, incumbent.config, name="incumbent"),
        gguf=workspace.fetch(incumbent.adapter_gguf),
    )


def _adapter_folder(workspace: Workspace, weights: Any, config: Any, *, name: str) -> Path:
    """Lay out the two PEFT files as PEFT expects them."""
    folder = workspace.folder / f"adapter-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(workspace.fetch(weights).read_bytes())
    (folder / "adapter_config.json").write_bytes(workspace.fetch(config).read_bytes())
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """Put a checkpoint folder into one tar file, in a fixed order."""
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    """Take a checkpoint folder out of its tar file.

    Raises:
        StageFailedError: a name or a link leaves the folder, or it is no tar file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise StageFailedError(
            f"The checkpoint {archive.name} cannot be unpacked: {error}. Begin this stage anew: everswarm cycle retry"
        ) from error
    return folder
