"""From a teacher as it was asked for to one that can be opened: finds its files or its server. Scores nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from everswarm.errors import StageFailedError
from everswarm.llm.pull import KNOWN_MODELS, pull_gguf
from everswarm.schemas.targets import Teacher
from everswarm.settings import TeacherSettings
from everswarm.training.distillation.prompts import template_name
from everswarm.training.distillation.teachers import TeacherAtWork, TeacherToOpen
from everswarm.training.distillation.teachers.gguf import gguf_quantization, gguf_revision, open_gguf_teacher
from everswarm.training.distillation.teachers.weights import WEIGHTS_PATTERN, open_weights_teacher, weights_revision
from everswarm.training.models import StudentWeights, model_folder, student_weights

if TYPE_CHECKING:
    from everswarm.training.workspace import Workspace

AS_SERVED = "as served"  # only the server knows which weights they are
TOKENIZER_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]
WEIGHTS_FILES = [*TOKENIZER_FILES, WEIGHTS_PATTERN]  # with the index, which is JSON
OTHER_FORMS = ["consolidated*", "original/*"]  # the same weights once more, as their makers keep them
PROJECTOR = "mmproj"  # beginning of a file that sees pictures, and is no model of language


class TeacherFinder:
    """Knows where this worker keeps models, and through whom it asks the server's."""

    def __init__(
        self, *, student: str, weights: StudentWeights, models_dir: Path, threads: int, workspace: Workspace
    ) -> None:
        """Remember; nothing is looked for yet.

        Args:
            student: full name of the model that learns.
            weights: its files, which are the teacher's where the student teaches itself.
            models_dir: where models are kept, each in a folder of its own.
            threads: of torch and llama.cpp.
            workspace: answers batches, and is told what is waited for.
        """
        self.student = student
        self.weights = weights
        self.models_dir = models_dir
        self.threads = threads
        self.workspace = workspace

    def find(self, asked: TeacherSettings) -> TeacherToOpen:
        """Return the teacher; its files are on this machine then.

        Raises:
            StageFailedError: there is no such model here, and none could be fetched.
        """
        find: dict[str, Callable[[TeacherSettings], TeacherToOpen]] = {
            "student": self._student,
            "weights": self._weights,
            "gguf": self._gguf,
            "vllm": self._vllm,
            "endpoint": self._endpoint,
        }
        return find[asked.source](asked)

    def _student(self, asked: TeacherSettings) -> TeacherToOpen:
        return open_weights_teacher(
            asked, folder=self.weights.folder, model=self.student, revision=self.weights.sha256, threads=self.threads
        )

    def _weights(self, asked: TeacherSettings) -> TeacherToOpen:
        folder = self._folder(asked.model, WEIGHTS_FILES)
        return open_weights_teacher(
            asked, folder=folder, model=asked.model, revision=weights_revision(folder), threads=self.threads
        )

    def _gguf(self, asked: TeacherSettings) -> TeacherToOpen:
        path = self._gguf_path(asked.model)
        return open_gguf_teacher(
            asked,
            path=path,
            model=asked.model,
            revision=gguf_revision(path),
            quantization=gguf_quantization(path),
            threads=self.threads,
        )

    def _vllm(self, asked: TeacherSettings) -> TeacherToOpen:
        def open_teacher() -> TeacherAtWork:
            from transformers import AutoTokenizer

            from everswarm.training.distillation.teachers.vllm import VllmTeacher

            tokenizer = AutoTokenizer.from_pretrained(self._folder(asked.model, TOKENIZER_FILES))
            return VllmTeacher(
                asked.model,
                base_url=asked.url,
                tokenizer=tokenizer,
                hindsight=asked.hindsight,
                template=asked.template,
            )

        return TeacherToOpen(_served(asked), open_teacher)

    def _endpoint(self, asked: TeacherSettings) -> TeacherToOpen:
        def open_teacher() -> TeacherAtWork:
            from everswarm.training.distillation.teachers.endpoint import EndpointTeacher

            return EndpointTeacher(
                asked.model,
                hindsight=asked.hindsight,
                answer_batch=self.workspace.answer_batch,
                folder=self.workspace.folder,
                on_wait=lambda text: self.workspace.report(0, 0, text),
            )

        return TeacherToOpen(_served(asked), open_teacher)

    def _folder(self, model: str, wanted: list[str]) -> Path:
        """Return a folder of Hugging Face files: a path, one that we made, or one from the Hub."""
        if Path(model).is_dir():
            return Path(model)
        if model in KNOWN_MODELS:
            return student_weights(model, self.models_dir, on_progress=self._note).folder
        ours = model_folder(model, self.models_dir) / "hf"
        return ours if ours.is_dir() else self._from_hub(model, wanted)

    def _gguf_path(self, model: str) -> Path:
        if Path(model).is_file():
            return Path(model)
        if model in KNOWN_MODELS:
            return pull_gguf(model, self.models_dir, on_progress=self._note).path
        folder = model_folder(model, self.models_dir)
        found = [path for path in sorted(folder.glob("*.gguf")) if _begins_model(path)]
        if len(found) > 1:
            raise StageFailedError(
                f"There are {len(found)} GGUF files of the teacher '{model}' in {folder}: "
                f"{', '.join(path.name for path in found)}. Name the one that should teach: gguf:{found[0]}"
            )
        if not found:
            raise StageFailedError(
                f"There is no GGUF of the teacher '{model}' here: not a file of this name, and none in {folder}. Put "
                "one there, or name its path on the worker's machine: gguf:/models/teacher.gguf"
            )
        return found[0]

    def _from_hub(self, model: str, wanted: list[str]) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        self._note(f"looking for the teacher {model} on the Hugging Face Hub")
        try:
            return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=OTHER_FORMS))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise StageFailedError(
                f"The teacher '{model}' is not on this machine (no folder of this name, none in "
                f"{model_folder(model, self.models_dir)}), and the Hub did not give it: {str(error).rstrip('.')}. Name "
                "a folder on the worker's machine, accept the model's licence on the Hub, or unset HF_HUB_OFFLINE."
            ) from error

    def _note(self, text: str) -> None:
        self.workspace.report(0, 0, text)


def _begins_model(path: Path) -> bool:
    """Say whether a GGUF is a whole model of language, or the first part of one."""
    part = re.search(r"-(\d{5})-of-\d{5}$", path.stem)
    return not path.name.startswith(PROJECTOR) and (part is None or int(part[1]) == 1)


def _served(asked: TeacherSettings) -> Teacher:
    return Teacher(
        asked=asked, model=asked.model, revision=AS_SERVED, quantization=AS_SERVED, template=template_name(asked)
    )
