"""Who teaches: the teachers of a cycle, as people ask for them."""

from __future__ import annotations

import math
import re
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from everswarm.settings.section import SECRET_INSIDE, Section, checked_base_url

TeacherSource = Literal["student", "weights", "gguf", "vllm", "endpoint"]
Precision = Literal["float32", "float16", "nf4"]
FORMS = "student, weights:NAME-OR-FOLDER, gguf:PATH, endpoint:MODEL or vllm:NAME@http://HOST:PORT/v1"


class TeacherSettings(Section):
    """One teacher. By default the student itself, shown the person's correction before it scores (hindsight).

    `weights` and `gguf` run in the worker; `vllm` is a server that scores given text; `endpoint` is any model of our
    gateway, which writes its own answers, in batches and within its quota.
    """

    source: TeacherSource = "student"
    model: str = ""  # a model's name, or for weights and gguf a path on the worker's machine
    url: str = ""  # of a vLLM server, such as http://127.0.0.1:8001/v1
    precision: Precision = "float32"  # of weights: float16 halves the memory, nf4 needs a GPU and bitsandbytes
    hindsight: bool = True
    template: Literal["chat", "plain"] = "chat"  # plain: for a base model, which has no chat template
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)  # of its opinion, where several teach
    task_weights: dict[str, float] = Field(default_factory=dict)  # instead of `weight`, by an example's task

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        try:
            return checked_base_url(url) if url else url
        except PydanticCustomError:
            raise PydanticCustomError(
                SECRET_INSIDE,
                "should have no credential and no query in it; the key of a vLLM server goes into the variable "
                "EVERSWARM_TEACHER_KEY, where the worker runs",
            ) from None

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str) -> str:
        if re.search(r"://.*@", model, re.DOTALL):
            raise PydanticCustomError(
                SECRET_INSIDE, "a model should be a name or a path, not an address with a credential"
            )
        return model

    @field_validator("task_weights")
    @classmethod
    def _check_weights(cls, weights: dict[str, float]) -> dict[str, float]:
        for task, weight in weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"the weight of '{task}' should be a number above 0")
        return weights

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.source == "student" and self.model:
            raise ValueError(f"source 'student' is the student itself; for '{self.model}' name another source")
        if self.source != "student" and not self.model.strip():
            raise ValueError(f"a teacher of source '{self.source}' needs a model")
        if self.source == "vllm" and not self.url:
            raise ValueError("a teacher of source 'vllm' needs a url, such as http://127.0.0.1:8001/v1")
        if self.url and self.source != "vllm":
            raise ValueError("a url belongs to a teacher of source 'vllm', and only to that")
        if self.template == "plain" and self.source == "endpoint":
            raise ValueError("template 'plain' is of no use to an endpoint, which has its own template; leave it out")
        if self.precision != "float32" and self.source not in {"student", "weights"}:
            raise ValueError(f"precision is chosen for weights; a teacher of source '{self.source}' comes as it is")
        return self

    @property
    def name(self) -> str:
        """Return how people write it: `student`, or `source:model`."""
        place = f"@{self.url}" if self.url else ""
        return self.source if self.source == "student" else f"{self.source}:{self.model}{place}"


def parse_teacher(text: str) -> TeacherSettings:
    """Return the teacher that `text` names: `student`, `weights:NAME`, `gguf:PATH`, `endpoint:MODEL`, `vllm:NAME@URL`.

    Raises:
        ValueError: it names none; says why, or lists the forms.
    """
    source, _, rest = text.strip().partition(":")
    model, _, url = rest.partition("@http") if source == "vllm" else (rest, "", "")
    if source not in ("student", "weights", "gguf", "vllm", "endpoint") or (source == "student") != (not rest):
        shown = re.sub(r"^([^:@]*:)?.*@", r"\1…@", text, flags=re.DOTALL)  # a credential may stand before an @
        raise ValueError(f"'{shown}' names no teacher. Write {FORMS}.")
    try:
        return TeacherSettings.model_validate({"source": source, "model": model, "url": f"http{url}" if url else ""})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"A teacher {source}:… cannot be used: {reason}. Write {FORMS}.") from None
