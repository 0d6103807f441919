from __future__ import annotations

import json
from importlib import util
from pathlib import Path

import pytest

from everswarm.errors import NoSpaceError, StageFailedError
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.export import base, base_gguf, export_adapter, subprocesses
from everswarm.training.export.subprocesses import run_converter, run_python
from everswarm.training.models import StudentWeights, student_weights


def write_tiny_adapter(folder: Path, hf_folder: Path) -> Path:
    """An adapter of rank 4 with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(hf_folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def script(folder: Path, code: str) -> list[str]:
    (folder / "program.py").write_text(code)
    return [str(folder / "program.py")]


def test_failed_program_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('the tensor has no name')"
    with pytest.raises(
        StageFailedError, match=r"Converting failed with exit code 1\. It said last: first \| the tensor"
    ):
        run_python(script(tmp_path, code), what="Converting", writes_to=tmp_path)


def test_program_that_finds_the_disk_full_is_told_as_such(tmp_path: Path) -> None:
    code = "raise OSError(28, 'No space left on device')"
    with pytest.raises(NoSpaceError, match=str(tmp_path)):
        run_python(script(tmp_path, code), what="Converting", writes_to=tmp_path)


def test_program_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "TIMEOUT_SECONDS", 0.5)
    with pytest.raises(StageFailedError, match=r"Converting took over 0\.5 s and was stopped"):
        run_python(script(tmp_path, "import time; time.sleep(60)"), what="Converting", writes_to=tmp_path)


def test_converter_reads_the_gguf_library_beside_it(tmp_path: Path) -> None:
    (tmp_path / "gguf-py" / "gguf").mkdir(parents=True)
    (tmp_path / "gguf-py" / "gguf" / "__init__.py").write_text("NAME = 'the one beside the script'\n")
    (tmp_path / "convert.py").write_text("import gguf, sys\nopen(sys.argv[1], 'w').write(gguf.NAME)\n")
    run_converter(tmp_path, "convert.py", [str(tmp_path / "out")], what="Converting", writes_to=tmp_path)
    assert (tmp_path / "out").read_text() == "the one beside the script"


def write_gguf(path: Path, file_type: int) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_base_ships_as_fetched_where_nothing_can_quantise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.util, "find_spec", lambda _name: None)
    gguf = write_gguf(tmp_path / "model.gguf", file_type=3)
    found = base_gguf("m/m", weights=StudentWeights(tmp_path, "a" * 64, gguf, "b" * 64), models_dir=tmp_path)
    assert (found.path, found.sha256, found.quantization) == (gguf, "b" * 64, "Q4_1")
    assert found.note is not None
    assert found.note.startswith(
        "The base ships as Q4_1, as it was fetched, and not as Q4_K_M: quantising needs cyllama"
    )


@pytest.mark.skipif(util.find_spec("cyllama") is None, reason="cyllama has no wheel for this system")
def test_base_is_made_once_from_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(_model: str, _hf: Path, _models: Path, path: Path, made_from: dict[str, str]) -> str:
        made.append(path)
        path.write_bytes(b"GGUF")
        stamp = {"made_from": made_from, "sha256": "c" * 64, "size_bytes": 4}
        path.with_name(path.name + ".json").write_text(json.dumps(stamp))
        return "c" * 64

    monkeypatch.setattr(base, "_make", make)
    weights = StudentWeights(tmp_path / "hf", "a" * 64, tmp_path / "model.gguf", "b" * 64)
    (tmp_path / "m--m").mkdir()
    first = base_gguf("m/m", weights=weights, models_dir=tmp_path)
    assert base_gguf("m/m", weights=weights, models_dir=tmp_path) == first
    assert len(made) == 1
    base_gguf("m/m", weights=weights._replace(sha256="d" * 64), models_dir=tmp_path)
    assert len(made) == 2


@pytest.mark.model
def test_adapter_of_the_embedded_model_converts_to_the_same_bytes_twice(tmp_path: Path) -> None:
    from gguf import GGUFReader

    models_dir = load_settings().models_dir
    weights = student_weights(EMBEDDED_MODEL, models_dir)
    paths = []
    for number in range(2):
        adapter = write_tiny_adapter(tmp_path / f"adapter-{number}", weights.folder)
        out = tmp_path / f"{number}.gguf"
        paths.append(export_adapter(adapter_dir=adapter, hf_folder=weights.folder, models_dir=models_dir, out_path=out))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert str(tmp_path).encode() not in paths[0].read_bytes()
    reader = GGUFReader(paths[0])
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    assert len(reader.tensors) == 2 * 2 * 30  # a and b, query and value, 30 layers
    assert {path.name for path in tmp_path.iterdir()} == {"adapter-0", "adapter-1", "0.gguf", "1.gguf"}


@pytest.mark.model
def test_adapter_that_is_broken_is_refused_with_the_converters_words(tmp_path: Path) -> None:
    models_dir = load_settings().models_dir
    weights = student_weights(EMBEDDED_MODEL, models_dir)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(StageFailedError, match=r"Converting the adapter to GGUF failed .* It said last: .*Safetensor"):
        export_adapter(
            adapter_dir=tmp_path, hf_folder=weights.folder, models_dir=models_dir, out_path=tmp_path / "out.gguf"
        )
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.model
@pytest.mark.skipif(util.find_spec("cyllama") is None, reason="cyllama has no wheel for this system")
def test_base_of_the_embedded_model_is_four_bit() -> None:
    models_dir = load_settings().models_dir
    found = base_gguf(EMBEDDED_MODEL, weights=student_weights(EMBEDDED_MODEL, models_dir), models_dir=models_dir)
    assert (found.quantization, found.note) == ("Q4_K_M", None)
    assert base.quantization_of(found.path) == "Q4_K_M"
    assert found.path.stat().st_size < 110e6
    assert str(Path.home()).encode() not in found.path.read_bytes()
