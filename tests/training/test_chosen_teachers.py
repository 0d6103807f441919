"""From a teacher as people name it to its files or its server; nothing is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from gguf import GGUFWriter

from everswarm.errors import StageFailedError
from everswarm.llm.verified_files import sha256_of
from everswarm.settings import parse_teacher
from everswarm.training.chosen_teachers import AS_SERVED, TeacherFinder
from everswarm.training.distillation.teachers.endpoint import EndpointTeacher
from everswarm.training.distillation.teachers.vllm import VllmTeacher
from everswarm.training.distillation.teachers.weights import WeightsTeacher
from everswarm.training.models import StudentWeights, model_folder
from everswarm.training.workspace import LocalWorkspace


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def finder(tiny_student: Path, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TeacherFinder:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return TeacherFinder(
        student="tiny/student",
        weights=StudentWeights(tiny_student, "5" * 64, tiny_student / "none.gguf", "6" * 64),
        models_dir=models_dir,
        threads=1,
        workspace=LocalWorkspace(tmp_path / "workspace"),
    )


def write_gguf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(15)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_student_is_taught_by_its_own_weights(finder: TeacherFinder) -> None:
    found = finder.find(parse_teacher("student"))
    assert found.teacher.model == "tiny/student"
    assert (found.teacher.revision, found.teacher.quantization) == ("5" * 64, "float32")
    assert isinstance(found.open(), WeightsTeacher)


def test_folder_of_weights_is_named_by_path_or_found_among_the_models(
    finder: TeacherFinder, tiny_student: Path, models_dir: Path
) -> None:
    by_path = finder.find(parse_teacher(f"weights:{tiny_student}")).teacher
    assert by_path.revision == sha256_of(tiny_student / "model.safetensors")
    kept = model_folder("org/teacher", models_dir) / "hf"
    kept.parent.mkdir(parents=True)
    kept.symlink_to(tiny_student)
    by_name = finder.find(parse_teacher("weights:org/teacher")).teacher
    assert (by_name.model, by_name.revision) == ("org/teacher", by_path.revision)


def test_precision_and_template_are_part_of_who_teaches(finder: TeacherFinder) -> None:
    asked = parse_teacher("student").model_copy(
        update={"precision": "float16", "template": "plain", "hindsight": False}
    )
    teacher = finder.find(asked).teacher
    assert (teacher.quantization, teacher.template) == ("float16", "plain-1/as-asked-1")
    assert teacher.asked == asked


def test_gguf_is_named_by_path_or_found_among_the_models(finder: TeacherFinder, models_dir: Path) -> None:
    kept = write_gguf(model_folder("org/teacher", models_dir) / "teacher.gguf")
    by_path = finder.find(parse_teacher(f"gguf:{kept}")).teacher
    assert (by_path.revision, by_path.quantization) == (sha256_of(kept), "Q4_K_M")
    assert finder.find(parse_teacher("gguf:org/teacher")).teacher.revision == by_path.revision


def test_picture_projector_and_later_parts_are_no_teachers(finder: TeacherFinder, models_dir: Path) -> None:
    folder = model_folder("org/teacher", models_dir)
    first = write_gguf(folder / "teacher-00001-of-00002.gguf")
    for name in ("mmproj-f16.gguf", "teacher-00002-of-00002.gguf"):
        write_gguf(folder / name)
    found = finder.find(parse_teacher("gguf:org/teacher")).teacher
    assert found.revision == finder.find(parse_teacher(f"gguf:{first}")).teacher.revision


def test_several_ggufs_are_listed_and_none_is_guessed(finder: TeacherFinder, models_dir: Path) -> None:
    folder = model_folder("org/teacher", models_dir)
    for name in ("Q8_0.gguf", "Q4_K_M.gguf"):
        write_gguf(folder / name)
    with pytest.raises(StageFailedError) as caught:
        finder.find(parse_teacher("gguf:org/teacher"))
    assert str(caught.value) == (
        f"There are 2 GGUF files of the teacher 'org/teacher' in {folder}: Q4_K_M.gguf, Q8_0.gguf. Name the one that "
        f"should teach: gguf:{folder / 'Q4_K_M.gguf'}"
    )


def test_weights_in_another_form_are_neither_fetched_nor_counted(
    finder: TeacherFinder, tiny_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fetched"
    shutil.copytree(tiny_student, folder)
    (folder / "consolidated.safetensors").write_bytes(b"the same once more")
    asked: dict[str, list[str]] = {}

    def download(_model: str, **patterns: list[str]) -> str:
        asked.update(patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = finder.find(parse_teacher("weights:org/absent")).teacher
    assert found.revision == sha256_of(tiny_student / "model.safetensors")
    assert "model*.safetensors" in asked["allow_patterns"]
    assert asked["ignore_patterns"] == ["consolidated*", "original/*"]


def test_what_a_server_serves_is_asked_without_looking_for_files(finder: TeacherFinder) -> None:
    teacher, open_teacher = finder.find(parse_teacher("endpoint:primary"))
    assert (teacher.model, teacher.revision, teacher.quantization) == ("primary", AS_SERVED, AS_SERVED)
    assert isinstance(open_teacher(), EndpointTeacher)


def test_vllm_needs_the_tokenizer_of_its_model_here(finder: TeacherFinder, tiny_student: Path) -> None:
    served = finder.find(parse_teacher(f"vllm:{tiny_student}@http://127.0.0.1:9/v1"))
    assert isinstance(served.open(), VllmTeacher)
    absent = finder.find(parse_teacher("vllm:org/absent@http://127.0.0.1:9/v1"))  # known, and not opened yet
    with pytest.raises(StageFailedError, match="teacher 'org/absent' is not on this machine"):
        absent.open()


def test_absent_weights_are_refused_with_what_to_do(finder: TeacherFinder, models_dir: Path) -> None:
    with pytest.raises(StageFailedError) as caught:
        finder.find(parse_teacher("weights:org/absent"))
    text = str(caught.value)
    place = model_folder("org/absent", models_dir)
    assert text.startswith(f"The teacher 'org/absent' is not on this machine (no folder of this name, none in {place})")
    assert text.endswith(
        "Name a folder on the worker's machine, accept the model's licence on the Hub, or unset HF_HUB_OFFLINE."
    )


def test_absent_gguf_is_refused_with_what_to_do(finder: TeacherFinder, models_dir: Path) -> None:
    with pytest.raises(StageFailedError) as caught:
        finder.find(parse_teacher("gguf:/no/such.gguf"))
    assert str(caught.value) == (
        "There is no GGUF of the teacher '/no/such.gguf' here: not a file of this name, and none in "
        f"{model_folder('/no/such.gguf', models_dir)}. Put one there, or name its path on the worker's machine: "
        "gguf:/models/teacher.gguf"
    )


def test_folder_without_weights_is_refused(finder: TeacherFinder, tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match=r"has no model\*\.safetensors\. .*gguf:PATH"):
        finder.find(parse_teacher(f"weights:{tmp_path}"))
