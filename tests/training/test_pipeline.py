"""What the pipeline itself does: it hands records on, and packs checkpoints."""

from __future__ import annotations

import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.stage_results import RESULTS

from everswarm.errors import BadRequestError, NotEnoughFeedbackError, StageFailedError
from everswarm.schemas.adapter import Adapter
from everswarm.schemas.artifact import ArtifactKind
from everswarm.schemas.dataset import Dataset, Snapshot
from everswarm.schemas.interaction import JudgedInteraction, Message
from everswarm.schemas.job import WORKER_STAGES, CycleParameters, Job, Stage
from everswarm.schemas.targets import SoftTargets
from everswarm.settings import Settings, TeacherSettings, parse_teacher
from everswarm.training import pipeline
from everswarm.training.curation import read_examples
from everswarm.training.models import StudentWeights
from everswarm.training.pipeline import curate_stage, pack, run_stage, unpack
from everswarm.training.workspace import LocalWorkspace


@pytest.fixture
def workspace(tmp_path: Path) -> LocalWorkspace:
    return LocalWorkspace(tmp_path / "workspace")


def freeze(workspace: LocalWorkspace, text: str, *, interactions: int) -> Snapshot:
    path = workspace.folder / "snapshot.jsonl"
    path.write_text(text, encoding="utf-8")
    data = workspace.store(path, kind=ArtifactKind.SNAPSHOT)
    return Snapshot(data=data, interactions=interactions, incumbent=None, split_of_user={"user0": "test"})


def judged(count: int) -> str:
    records = [
        JudgedInteraction(
            id=f"i{number:03}",
            device_id=f"user{number % 10}",
            timestamp=datetime(2026, 1, 2, tzinfo=UTC),
            messages=[Message(role="user", content=f"How many metres are {number} km?")],
            correction=f"{number * 1000} m.",
            consent=number % 20 != 0,
        )
        for number in range(count)
    ]
    return "".join(record.model_dump_json() + "\n" for record in records)


def curate_job(snapshot: Snapshot, *, seed: int = 0, minimum_examples: int = 24) -> Job:
    return Job(
        id="c1.curate",
        cycle_id="c1",
        stage=Stage.CURATE,
        parameters=CycleParameters(student="tiny", seed=seed, minimum_examples=minimum_examples),
        inputs={"snapshot": snapshot.model_dump(mode="json")},
    )


def test_curate_makes_a_dataset_that_names_its_snapshot_and_keeps_earlier_splits(workspace: LocalWorkspace) -> None:
    snapshot = freeze(workspace, judged(100), interactions=100)

    dataset = run_stage(curate_job(snapshot), workspace, Settings())

    assert isinstance(dataset, Dataset)
    assert dataset.card.parents[0] == snapshot.data.sha256  # then the suites that it was kept clear of
    assert dataset.split_of_user["user0"] == "test"
    examples = read_examples(workspace.fetch(dataset.data))
    assert len(examples) == sum(dataset.card.examples.values())
    assert dataset.card.read == len(examples) + sum(dropped.count for dropped in dataset.card.dropped)
    assert workspace.reports[-1].note == f"{len(examples)} examples kept"


def test_same_snapshot_and_seed_give_the_same_bytes_and_another_seed_others(
    workspace: LocalWorkspace, tmp_path: Path
) -> None:
    snapshot = freeze(workspace, judged(100), interactions=100)
    first = curate_stage(curate_job(snapshot), workspace, Settings())
    other = curate_stage(curate_job(snapshot, seed=1), workspace, Settings())
    again = LocalWorkspace(tmp_path / "again")
    assert curate_stage(curate_job(freeze(again, judged(100), interactions=100)), again, Settings()) == first
    assert other.data.sha256 != first.data.sha256
    assert {example.split for example in read_examples(workspace.fetch(first.data))} == {"train", "validation", "test"}


def test_too_little_feedback_says_how_much_there_is_and_how_much_is_needed(workspace: LocalWorkspace) -> None:
    snapshot = freeze(workspace, judged(10), interactions=10)
    with pytest.raises(NotEnoughFeedbackError) as caught:
        curate_stage(curate_job(snapshot), workspace, Settings())
    message = str(caught.value)
    assert "24 are needed" in message
    assert "consent: 1 (no consent to training)" in message
    assert "Collect more corrections" in message


def test_broken_line_of_a_snapshot_is_named(workspace: LocalWorkspace) -> None:
    snapshot = freeze(workspace, judged(3) + '{"id": "x"}\n', interactions=4)
    with pytest.raises(BadRequestError, match="line 4"):
        curate_stage(curate_job(snapshot), workspace, Settings())


@pytest.fixture
def labelling(workspace: LocalWorkspace, tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that labels for the tiny student with two teachers: itself, and by its folder once more, as asked."""
    weights = StudentWeights(tiny_student, "5" * 64, tiny_student / "none.gguf", "6" * 64)
    monkeypatch.setattr(pipeline, "_student", lambda *_: weights)
    snapshot = freeze(workspace, judged(40), interactions=40)
    dataset = run_stage(curate_job(snapshot), workspace, Settings())
    other = parse_teacher(f"weights:{tiny_student}").model_copy(update={"hindsight": False})
    return Job(
        id="c1.label",
        cycle_id="c1",
        stage=Stage.LABEL,
        parameters=CycleParameters(student="tiny/student", teachers=[TeacherSettings(), other], epochs=1),
        inputs={Stage.CURATE: dataset.model_dump(mode="json")},
    )


def test_each_teacher_labels_the_training_split_and_the_student_learns_from_all(
    workspace: LocalWorkspace, labelling: Job
) -> None:
    targets = run_stage(labelling, workspace, Settings())

    assert isinstance(targets, SoftTargets)
    dataset = Dataset.model_validate(labelling.inputs[Stage.CURATE])
    assert [cache.texts for cache in targets.caches] == [{"target": dataset.card.examples["train"]}] * 2
    assert [cache.teacher.template for cache in targets.caches] == ["chat-1/ask-again-1", "chat-1/as-asked-1"]
    assert targets.dataset == dataset.data.sha256

    inputs = {**labelling.inputs, Stage.LABEL: targets.model_dump(mode="json")}
    learning = labelling.model_copy(update={"stage": Stage.DISTILL, "inputs": inputs})
    adapter = run_stage(learning, workspace, Settings())
    assert isinstance(adapter, Adapter)
    assert (adapter.soft_targets, adapter.dataset) == (targets.digest, dataset.data.sha256)
    assert adapter.curve[0].kl > 0


def test_labelling_goes_on_with_the_second_teacher_where_the_first_was_finished(
    workspace: LocalWorkspace, labelling: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, Any]] = []
    monkeypatch.setattr(workspace, "save_checkpoint", saved.append)
    whole = run_stage(labelling, workspace, Settings())
    assert [len(checkpoint["finished"]) for checkpoint in saved] == [1, 2]
    first = saved[0]
    resumed = run_stage(labelling.model_copy(update={"checkpoint": first}), workspace, Settings())
    assert resumed == whole
    assert [len(checkpoint["finished"]) for checkpoint in saved] == [1, 2, 2]  # nothing of the first was made again
    changed = labelling.parameters.model_copy(update={"teachers": labelling.parameters.teachers[1:]})
    with pytest.raises(StageFailedError, match=r"is of teacher student .* Ask for the same teachers, or begin"):
        run_stage(labelling.model_copy(update={"checkpoint": first, "parameters": changed}), workspace, Settings())


def test_every_stage_of_a_worker_is_in_the_pipeline(workspace: LocalWorkspace) -> None:
    for stage in WORKER_STAGES:
        job = curate_job(freeze(workspace, "", interactions=0)).model_copy(update={"stage": stage, "inputs": {}})
        with pytest.raises(KeyError, match=r"snapshot|curate|distill"):  # it looks for its inputs, so it is there
            run_stage(job, workspace, Settings())


def test_packed_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-4"
    (folder / "state").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"\x00" * 100)
    (folder / "state" / "rng.pth").write_bytes(b"rng")

    unpacked = unpack(pack(folder, tmp_path / "checkpoint.tar"), tmp_path / "resume")

    found = {str(path.relative_to(unpacked)): path.read_bytes() for path in unpacked.rglob("*") if path.is_file()}
    assert found == {"adapter.safetensors": b"\x00" * 100, str(Path("state") / "rng.pth"): b"rng"}


def archive_with(tmp_path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    path = tmp_path / "checkpoint.tar"
    member.size = len(content)
    with tarfile.open(path, "w") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("a/../../escaped"),
        link("inside", "../escaped", tarfile.SYMTYPE),
        link("inside", "../escaped", tarfile.LNKTYPE),
        link("device", "", tarfile.CHRTYPE),
    ],
    ids=["name", "name with a detour", "symbolic link", "hard link", "device"],
)
def test_archive_that_reaches_out_of_its_folder_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = archive_with(tmp_path, member)
    with pytest.raises(StageFailedError, match=r"checkpoint\.tar cannot be unpacked.*everswarm cycle retry"):
        unpack(archive, tmp_path / "resume")
    assert not (tmp_path / "escaped").exists()
    assert list((tmp_path / "resume").iterdir()) == []


def test_absolute_name_lands_inside_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    unpack(archive_with(tmp_path, tarfile.TarInfo(str(outside)), b"x"), tmp_path / "resume")
    assert not outside.exists()


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.tar").write_bytes(b"not a tar file")
    with pytest.raises(StageFailedError, match="cannot be unpacked"):
        unpack(tmp_path / "checkpoint.tar", tmp_path / "resume")


def test_adapter_of_another_base_is_refused(
    workspace: LocalWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = StudentWeights(tmp_path / "hf", "9" * 64, tmp_path / "model.gguf", "8" * 64)
    monkeypatch.setattr(pipeline, "student_weights", lambda *_arguments, **_named: mine)
    job = Job(
        id="c1.export",
        cycle_id="c1",
        stage=Stage.EXPORT,
        parameters=CycleParameters(student="tiny"),
        inputs={Stage.DISTILL: RESULTS[Stage.DISTILL]},
    )
    with pytest.raises(StageFailedError, match=r"trained on the weights 111111111111 of tiny; this worker has 999999"):
        run_stage(job, workspace, Settings(home=tmp_path))
