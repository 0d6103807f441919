"""llama.cpp's own converters to GGUF, out of the source package of `llama-cpp-python`, which is never built."""

from __future__ import annotations

import contextlib
import tarfile
from pathlib import Path, PurePosixPath

from everswarm.errors import DigestMismatchError
from everswarm.llm.pull import Report
from everswarm.llm.pypi import pull_pypi_file
from everswarm.llm.verified_files import exclusive, work_folder

REQUIREMENT = "llama-cpp-python==0.3.36"
FILENAME = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
TREE = PurePosixPath("llama_cpp_python-0.3.36/vendor/llama.cpp")
WANTED = ("LICENSE", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")


def pull_llama_cpp_source(models_dir: Path, *, on_progress: Report | None = None) -> Path:
    """Return the folder with `convert_hf_to_gguf.py`, `convert_lora_to_gguf.py` and `gguf-py`, fetched if needed.

    Raises:
        DigestMismatchError: the index has another file under this name.
        ConfigurationError: this Python has no pip.
        NoSpaceError: the disk is full.
        UnavailableError: the index does not answer.
    """
    home = models_dir / "llama.cpp"
    tree = home / FILENAME.removesuffix(".tar.gz")
    if tree.is_dir():
        return tree
    with exclusive(home / "source.lock"):
        if not tree.is_dir():
            if on_progress:
                on_progress(f"fetching llama.cpp's converters (77 MB, {REQUIREMENT})")
            with work_folder(home) as folder:
                archive = pull_pypi_file(
                    REQUIREMENT, FILENAME, SHA256, folder / "download", source_backend="scikit_build_core.build"
                )
                unpack(archive, folder / "tree")
                (folder / "tree").rename(tree)
    return tree


def unpack(archive: Path, into: Path) -> None:
    """Write the wanted regular files of `archive` below `into`; links and paths that lead elsewhere are left out.

    Raises:
        DigestMismatchError: the archive lacks the converters.
    """
    with contextlib.closing(tarfile.open(archive, "r:gz")) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if not member.isreg() or ".." in name.parts or not name.is_relative_to(TREE):
                continue
            inside = name.relative_to(TREE)
            content = tar.extractfile(member)
            if inside.parts[:1] and inside.parts[0] in WANTED and content is not None:
                target = into.joinpath(*inside.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    missing = [name for name in WANTED if not (into / name).exists()]
    if missing:
        raise DigestMismatchError(
            f"{archive.name} lacks {', '.join(missing)}", expected=SHA256, found="an archive without"
        )
