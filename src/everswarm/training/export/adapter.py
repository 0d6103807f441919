"""PEFT adapter → GGUF, by llama.cpp's own converter."""

from __future__ import annotations

import shutil
from pathlib import Path

from everswarm.llm.converter_source import pull_llama_cpp_source
from everswarm.llm.verified_files import work_folder
from everswarm.training.export.subprocesses import run_converter


def export_adapter(*, adapter_dir: Path, hf_folder: Path, models_dir: Path, out_path: Path) -> Path:
    """Write the adapter in `adapter_dir` as GGUF (16-bit floats) to `out_path` and return it.

    Args:
        adapter_dir: folder with PEFT's two files.
        hf_folder: the base model; only its configuration and tokenizer are read.
        models_dir: the folder of models, where the converter is kept.
        out_path: the file to write; replaced in one step.

    Raises:
        StageFailedError: the converter refused the adapter; has what it said.
        NoSpaceError: the disk is full.
        UnavailableError: the converter is not here yet and cannot be fetched.
    """
    tree = pull_llama_cpp_source(models_dir)
    with work_folder(out_path.parent) as work:
        source = work / "adapter"  # the converter writes the folder's name into the file, so it is always the same
        source.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter_dir / name, source / name)
        made = work / "adapter.gguf"
        arguments = [str(source), "--base", str(hf_folder), "--outfile", str(made), "--outtype", "f16"]
        run_converter(tree, "convert_lora_to_gguf.py", arguments, what="Converting the adapter to GGUF", writes_to=work)
        made.replace(out_path)
    return out_path
