"""The real small model on a device, with and without an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.device_server import DeviceServer

from everswarm.device.runtime import DeviceRuntime
from everswarm.device.sync import sync
from everswarm.errors import EverswarmError
from everswarm.llm.pull import pull_gguf
from everswarm.schemas.interaction import Message
from everswarm.settings import EMBEDDED_MODEL, load_settings

QUESTION = [Message(role="user", content="What is the capital of France? Answer in one word.")]


def noisy_adapter(path: Path) -> bytes:
    """Return a LoRA that bends the attention of SmolLM2-135M (576 wide, 30 blocks) enough to change an answer."""
    gguf = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    noise = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for block in range(30):
        for half, shape in (("lora_a", (4, 576)), ("lora_b", (576, 4))):
            values = noise.normal(0, 0.5, shape).astype(numpy.float32)
            writer.add_tensor(f"blk.{block}.attn_q.weight.{half}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.model
def test_the_adapter_counts_or_not_as_asked(server: DeviceServer, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    try:
        base = pull_gguf(EMBEDDED_MODEL, load_settings().models_dir).path.read_bytes()
    except EverswarmError as error:
        pytest.skip(f"the small real model cannot be had: {error}")
    server.publish("v1.0", base=base, adapter=None)
    sync(home)
    with DeviceRuntime(home) as runtime:
        plain = runtime.answer(QUESTION, max_tokens=16)
    server.publish("v1.1", base=base, adapter=noisy_adapter(tmp_path / "adapter.gguf"))
    assert sync(home).base_downloaded_bytes == 0
    with DeviceRuntime(home) as runtime:
        bent = runtime.answer(QUESTION, max_tokens=16)
        base_again = runtime.answer(QUESTION, max_tokens=16, adapter=False)
    assert plain.text.strip()
    assert 0 < plain.tokens <= 16
    assert base_again.text == plain.text
    assert bent.text != plain.text
