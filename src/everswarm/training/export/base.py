"""The base model as it ships: 4-bit GGUF, made once from the weights that the adapter was trained on."""

from __future__ import annotations

import contextlib
import json
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from everswarm.llm import converter_source
from everswarm.llm.verified_files import exclusive, sha256_of, work_folder
from everswarm.training.export.subprocesses import run_converter, run_python
from everswarm.training.models import StudentWeights, model_folder

QUANTIZATION = "Q4_K_M"


class BaseGguf(NamedTuple):
    """A base model for llama.cpp."""

    path: Path
    sha256: str
    quantization: str
    note: str | None  # why it is not `QUANTIZATION`


def base_gguf(model: str, *, weights: StudentWeights, models_dir: Path) -> BaseGguf:
    """Return the 4-bit base of `model`, made if it is not there yet. Safe in two processes at once.

    Where there is no `cyllama` wheel (it quantises), the GGUF that the weights were made from ships as it is.

    Raises:
        StageFailedError: the converter or the quantiser failed; has what it said.
        NoSpaceError: the disk is full.
        UnavailableError: the converter is not here yet and cannot be fetched.
    """
    if util.find_spec("cyllama") is None:
        found = quantization_of(weights.gguf)
        note = (
            f"The base ships as {found}, as it was fetched, and not as {QUANTIZATION}: quantising needs cyllama, which "
            "has no wheel for this system."
        )
        return BaseGguf(weights.gguf, weights.gguf_sha256, found, note)
    path = model_folder(model, models_dir) / f"{QUANTIZATION}.gguf"
    made_from = {
        "weights": weights.sha256,
        "converter": converter_source.REQUIREMENT,
        "quantizer": f"cyllama {metadata.version('cyllama')}",
    }
    digest = _digest_on_stamp(path, made_from)
    if digest is None:
        with exclusive(path.with_name(f"{QUANTIZATION}.lock")):
            digest = _digest_on_stamp(path, made_from)
            if digest is None:
                digest = _make(model, weights.folder, models_dir, path, made_from)
    return BaseGguf(path, digest, QUANTIZATION, None)


def quantization_of(path: Path) -> str:
    """Return what most weights of a GGUF are, such as Q4_1."""
    from gguf import GGUFReader, LlamaFileType

    field = GGUFReader(path).fields.get("general.file_type")
    if field is None:
        return "unknown"
    return str(LlamaFileType(int(field.contents())).name).removeprefix("MOSTLY_").removeprefix("ALL_")


def _make(model: str, hf_folder: Path, models_dir: Path, path: Path, made_from: dict[str, str]) -> str:
    tree = converter_source.pull_llama_cpp_source(models_dir)
    with work_folder(path.parent) as work:
        whole, small = work / "f16.gguf", work / path.name
        arguments = [str(hf_folder), "--outfile", str(whole), "--outtype", "f16", "--model-name", model]
        run_converter(tree, "convert_hf_to_gguf.py", arguments, what=f"Converting {model} to GGUF", writes_to=work)
        child = ["-m", "everswarm.training.export.quantize_child", str(whole), str(small), QUANTIZATION]
        run_python(child, what=f"Quantising {model} to {QUANTIZATION}", writes_to=work)
        digest = sha256_of(small)
        stamp = {"made_from": made_from, "sha256": digest, "size_bytes": small.stat().st_size}
        _stamp_of(path).unlink(missing_ok=True)  # never an old stamp beside a new file
        small.replace(path)
        (work / "stamp").write_text(json.dumps(stamp), encoding="utf-8")
        (work / "stamp").replace(_stamp_of(path))
    return digest


def _digest_on_stamp(path: Path, made_from: dict[str, str]) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        stamp = json.loads(_stamp_of(path).read_text(encoding="utf-8"))
        if stamp["made_from"] == made_from and stamp["size_bytes"] == path.stat().st_size:
            return str(stamp["sha256"])
    return None


def _stamp_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")
