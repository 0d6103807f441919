"""A student's weights for training, made once from the same GGUF that the engine runs.

Knows nothing of where the GGUF comes from.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from everswarm.errors import NoSpaceError, StageFailedError
from everswarm.llm.pull import GgufFile, Report, pull_gguf
from everswarm.llm.verified_files import exclusive, no_space, sha256_of, work_folder
from everswarm.settings import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS_FILE = "model.safetensors"
STAMP_FILE = "everswarm.json"
STAMP_VERSION = 1  # a new way of making the weights takes the next number, so that old folders are made again
DIGITS_APART = ("smollm",)  # values of `tokenizer.ggml.pre` where llama.cpp splits off each digit before anything else


class StudentWeights(NamedTuple):
    """One model twice: for torch and for llama.cpp."""

    folder: Path
    sha256: str  # of the safetensors file
    gguf: Path
    gguf_sha256: str


def model_folder(model: str, models_dir: Path) -> Path:
    """Return the folder in which everything about `model` is kept."""
    return models_dir / model.replace("/", "--")


def student_weights(model: str, models_dir: Path, *, on_progress: Report | None = None) -> StudentWeights:
    """Return the weights of `model`, fetched and converted if they are not there yet. Safe in two processes at once.

    The conversion takes about 20 CPU-seconds and 540 MB of disk for SmolLM2-135M and gives the same bytes each time.

    Raises:
        BadRequestError: the model is not one that we can pull.
        DigestMismatchError: the GGUF is not the promised one.
        NoSpaceError: the disk is full; nothing was half-written.
        UnavailableError: no source answered.
    """
    gguf = pull_gguf(model, models_dir, on_progress=on_progress)
    folder = model_folder(model, models_dir) / "hf"
    digest = _digest_on_stamp(folder, gguf.sha256)
    if digest is None:
        with exclusive(folder.with_name("hf.lock")):
            digest = _digest_on_stamp(folder, gguf.sha256)
            if digest is None:
                if on_progress:
                    on_progress(f"making the training weights of {model} from its GGUF (once)")
                digest = _make_folder(gguf, folder)
    return StudentWeights(folder, digest, gguf.path, gguf.sha256)


def load_student(folder: Path, *, threads: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load float32 weights and tokenizer from `folder`, and let torch use `threads` threads."""
    return _load(folder, threads, dtype="float32")


def load_weights(
    folder: Path, *, precision: Precision, threads: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load weights and tokenizer from `folder` for reading only, on the GPU if there is one.

    Raises:
        StageFailedError: `nf4`, and there is no GPU or no bitsandbytes; or the folder has no weights of a model.
    """
    import torch

    if not (folder / "config.json").is_file():
        raise StageFailedError(
            f"{folder} is no folder of Hugging Face weights: it has no config.json. Name one that has."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision != "nf4":
        model, tokenizer = _load(folder, threads, dtype=precision)
        return model.to(device), tokenizer
    missing = [
        what
        for what, found in (
            ("a CUDA GPU", device == "cuda"),
            ("bitsandbytes (pip install bitsandbytes)", importlib.util.find_spec("bitsandbytes") is not None),
        )
        if not found
    ]
    if missing:
        raise StageFailedError(
            f"Precision nf4 needs {' and '.join(missing)}, which this machine does not have. Choose precision float32 "
            "or float16, or a 4-bit GGUF of the model, which needs neither."
        )
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,  # a T4 has no bfloat16
    )
    return _load(folder, threads, dtype="float16", quantization_config=four_bits, device_map={"": 0})


def _load(
    folder: Path, threads: int, *, dtype: Literal["float32", "float16"], **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _silence_transformers()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, **options)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _digest_on_stamp(folder: Path, gguf_sha256: str) -> str | None:
    """Return the digest noted when `folder` was made, if that was from this GGUF and the weights are whole."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        stamp = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
        expected = (STAMP_VERSION, gguf_sha256, (folder / WEIGHTS_FILE).stat().st_size)
        if (stamp["version"], stamp["gguf_sha256"], stamp["size_bytes"]) == expected:
            return str(stamp["sha256"])
    return None


def _make_folder(gguf: GgufFile, folder: Path) -> str:
    with work_folder(folder.parent) as work:
        made = work / "hf"
        try:
            convert_gguf(gguf.path, made)
        except Exception as error:
            if "No space left" in str(error) and not isinstance(error, NoSpaceError):  # safetensors has its own error
                raise no_space(folder.parent) from error
            raise
        digest = sha256_of(made / WEIGHTS_FILE)
        stamp = {
            "version": STAMP_VERSION,
            "gguf_sha256": gguf.sha256,
            "sha256": digest,
            "size_bytes": (made / WEIGHTS_FILE).stat().st_size,
        }
        (made / STAMP_FILE).write_text(json.dumps(stamp), encoding="utf-8")
        if folder.exists():
            folder.rename(work / "old")
        made.rename(folder)
    return digest


def convert_gguf(gguf: Path, into: Path) -> None:
    """Write the weights and the tokenizer of `gguf`, dequantised to float32, as Hugging Face files."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _silence_transformers()
    fields = GGUFReader(gguf).fields
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if "tokenizer.ggml.pre" in fields and fields["tokenizer.ggml.pre"].contents() in DIGITS_APART:
        _split_digits(tokenizer)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # the weights are dequantised by now, yet transformers refuses to save a model that it read from a GGUF
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(into)
    tokenizer.save_pretrained(into)
    if "general.license" in fields:  # read by the converter to GGUF, so that the licence travels with the weights
        (into / "README.md").write_text(
            f"---\nlicense: {fields['general.license'].contents()}\n---\n", encoding="utf-8"
        )


def _split_digits(tokenizer: Any) -> None:
    """Cut text as llama.cpp does: transformers drops this rule of the GGUF, and '1.' after a blank line differs."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _silence_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
