"""The architecture, read top to bottom: interaction → dataset → soft targets → adapter → evaluation → release → device.

Start it with `python examples/full_loop.py`: a tiny random model, no download, no network, seconds. Curation,
labelling, distillation, metrics, gate, records and digests are the real code. The GGUF files and llama.cpp are fake,
and the output says so. The same loop on a real model: `everswarm demo`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tiny_student import make_tiny_student

import everswarm
from everswarm.identifiers import new_id
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.artifact import Artifact, ArtifactKind
from everswarm.schemas.dataset import Snapshot
from everswarm.schemas.evaluation import Comparison, Evaluation, PromotionDecision, Suite
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.schemas.release import Release
from everswarm.schemas.targets import LabelCheckpoint, SoftTargets
from everswarm.server.experiments.promotion import decide
from everswarm.settings import TeacherSettings
from everswarm.training.curation import curate, read_examples
from everswarm.training.distillation import distill, label
from everswarm.training.distillation.teachers.weights import open_weights_teacher, weights_revision
from everswarm.training.evaluation import general_suite
from everswarm.training.evaluation.hf_score import HfModel
from everswarm.training.evaluation.metrics import bits_per_byte, comparison_of
from everswarm.training.evaluation.texts import QuestionAnswer, load_tokenizer, tokenize
from everswarm.training.workspace import LocalWorkspace, describe

STUDENT = "example/tiny-random-llama"
RECIPE = Recipe(
    name="example",
    rank=8,
    alpha=16,
    dropout=0.0,
    target_modules="all-linear",
    learning_rate=3e-3,
    batch_size=8,
    epochs=2,
    max_tokens=256,
    soft_target_weight=0.3,  # low: a random teacher has little to say
    checkpoint_every_steps=100,
)


def main(folder: Path) -> None:
    """Walk the loop once. What a stage needs of an earlier one is handed to it here; no stage knows another."""
    workspace = LocalWorkspace(folder)
    student = make_tiny_student(folder / "student")
    snapshot = people_judge(workspace)
    dataset = curate_feedback(workspace, snapshot)
    targets = label_with_hindsight(workspace, dataset, student)
    adapter = distill_student(workspace, dataset, targets, student)
    shipped = export_as_fake(workspace, adapter, student)
    evaluation = evaluate_held_out(workspace, dataset, adapter, shipped, student)
    decision = decide(evaluation, margin=0.01)
    say("decide", decision.reason)
    if decision.promote:
        release = publish(workspace, decision, evaluation, shipped)
        use_on_device(workspace, release)


def say(stage: str, text: str) -> None:
    """Print the one line of a stage."""
    print(f"{stage:<9}{text}", flush=True)


def people_judge(workspace: LocalWorkspace) -> Artifact:
    """Nothing → interactions and feedback: twelve people ask, read a bad answer, and correct most of them."""
    judged = [
        JudgedInteraction(
            id=f"interaction-{number:03}",
            device_id=f"person-{number % 12}",
            timestamp=datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=number),
            messages=[Message(role="user", content=f"How many metres are {number} km?")],
            response="I cannot say.",
            rating=2,
            correction=f"{number} km are {number * 1000} m." if number % 7 else None,
            consent=number % 10 != 0,
        )
        for number in range(1, 145)
    ]
    path = workspace.folder / "snapshot.jsonl"
    path.write_text("".join(f"{record.model_dump_json()}\n" for record in judged), encoding="utf-8")
    say("judge", f"{len(judged)} interactions of 12 people")
    return workspace.store(path, kind=ArtifactKind.SNAPSHOT)


def curate_feedback(workspace: LocalWorkspace, snapshot: Artifact) -> Artifact:
    """Feedback → dataset: what may be learnt from, with nobody in two splits."""
    frozen = Snapshot(data=snapshot, interactions=144, incumbent=None, split_of_user={})
    files, card, _ = curate(workspace.fetch(snapshot), frozen, out_dir=workspace.folder, seed=0, minimum_examples=24)
    kept = " / ".join(str(count) for count in card.examples.values())
    say("curate", f"{kept} examples; dropped: {'; '.join(f'{item.count} {item.reason}' for item in card.dropped)}")
    return workspace.store(files.examples, kind=ArtifactKind.DATASET)


def label_with_hindsight(workspace: LocalWorkspace, dataset: Artifact, student: Path) -> SoftTargets:
    """Dataset → soft targets: the model itself, shown the correction, says what it finds likely."""
    teacher = open_weights_teacher(
        TeacherSettings(), folder=student, model=STUDENT, revision=weights_revision(student), threads=1
    )
    targets = label(
        read_examples(workspace.fetch(dataset), split="train"),
        dataset=dataset.sha256,
        teachers=[teacher],
        out_dir=workspace.folder,
        done=LabelCheckpoint(),
        store_shard=lambda path: workspace.store(path, kind=ArtifactKind.SOFT_TARGETS),
        on_checkpoint=lambda done: workspace.save_checkpoint(done.model_dump(mode="json")),
    )
    [cache] = targets.caches
    say("label", f"{cache.tokens} tokens in {len(cache.shards)} shards, the {cache.top_k} likeliest of each kept")
    return targets


def distill_student(workspace: LocalWorkspace, dataset: Artifact, targets: SoftTargets, student: Path) -> Path:
    """Dataset and soft targets → adapter, as PEFT's folder."""
    done = distill(
        examples=read_examples(workspace.fetch(dataset), split="train"),
        weights=student,
        targets=targets,
        shards=[workspace.fetch(shard) for cache in targets.caches for shard in cache.shards],
        recipe=RECIPE,
        seed=0,
        student=STUDENT,
        work_dir=workspace.folder / "run",
    )
    first, *_, last = (point.cross_entropy for point in done.curve)
    say("distill", f"{done.steps} steps, {first:.2f} → {last:.2f} nats a token")
    return done.adapter_dir


def export_as_fake(workspace: LocalWorkspace, adapter: Path, student: Path) -> tuple[Artifact, Artifact]:
    """Adapter → what ships, base and adapter. Fake: the PEFT bytes under the kind of a GGUF file."""
    base = workspace.store(student / "model.safetensors", kind=ArtifactKind.BASE_GGUF)
    shipped = workspace.store(adapter / "adapter_model.safetensors", kind=ArtifactKind.ADAPTER_GGUF)
    say("export", f"fake GGUF: adapter of {shipped.size_bytes} bytes for a base of {base.size_bytes}")
    return base, shipped


def evaluate_held_out(
    workspace: LocalWorkspace, dataset: Artifact, adapter: Path, shipped: tuple[Artifact, Artifact], student: Path
) -> Evaluation:
    """Adapter → evaluation, on people that training never saw and on general text."""
    model = HfModel(student, adapters={"candidate": adapter}, threads=1)
    tokenizer = load_tokenizer(student)
    held_out = read_examples(workspace.fetch(dataset), split="test")
    suites: dict[Suite, Sequence[QuestionAnswer]] = {"test": held_out, "general": general_suite()}
    found: list[Comparison] = []
    for suite, examples in suites.items():
        texts = [tokenize(example, tokenizer) for example in examples]
        with model.use(None):
            base = bits_per_byte(model.score(texts))
        with model.use("candidate"):
            candidate = bits_per_byte(model.score(texts))
        found.append(comparison_of(candidate, base, suite=suite, subject="base", weights="hf", seed=0))
    told = (f"{one.suite} {one.baseline_value:.2f} → {one.baseline_value + one.difference:.2f}" for one in found)
    say("evaluate", f"bits per byte on HF weights: {', '.join(told)}; llama.cpp: fake, the same again")
    return Evaluation(
        dataset=dataset.sha256,
        adapter=shipped[1].sha256,
        adapter_gguf=shipped[1].sha256,
        base_gguf=shipped[0].sha256,
        incumbent_gguf=None,
        engines={"hf": "torch", "gguf": "fake: the numbers of the HF weights"},
        scores=[],
        comparisons=[*found, *(one.model_copy(update={"weights": "gguf"}) for one in found)],
        answers=[],
    )


def publish(
    workspace: LocalWorkspace, decision: PromotionDecision, evaluation: Evaluation, shipped: tuple[Artifact, Artifact]
) -> Release:
    """Evaluation → release: names everything behind it by digest."""
    path = workspace.folder / "evaluation.json"
    path.write_text(evaluation.model_dump_json(), encoding="utf-8")
    release = Release(
        id=new_id(),
        version="v1.0",
        role="ultralight",
        student=STUDENT,
        base=shipped[0],
        adapter=shipped[1],
        quantization="fake",
        cycle_id=new_id(),
        dataset=evaluation.dataset,
        evaluation=workspace.store(path, kind=ArtifactKind.RECORD).sha256,
        reason=decision.reason,
        oldest_client=everswarm.__version__,
        created_at=datetime.now(UTC),
    )
    say("release", f"{release.version} of {release.student} for the role {release.role}")
    return release


def use_on_device(workspace: LocalWorkspace, release: Release) -> None:
    """Release → device: trust the digests alone, and walk back from them to the people behind the adapter."""
    assert release.adapter is not None
    arrived = describe(workspace.fetch(release.adapter), kind=release.adapter.kind)
    evaluation = workspace.store_folder / release.evaluation
    behind = Evaluation.model_validate_json(evaluation.read_text(encoding="utf-8"))
    people = {example.user for example in read_examples(workspace.store_folder / behind.dataset, split="train")}
    matches = "matches" if arrived.sha256 == release.adapter.sha256 == behind.adapter_gguf else "does NOT match"
    say("device", f"fake engine: adapter {arrived.sha256[:8]} {matches} its release, learnt from {len(people)} people")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
