"""The student answers some of the questions itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from everswarm.schemas.dataset import Example
from everswarm.settings import EMBEDDED_MODEL, load_settings
from everswarm.training.distillation.rollouts import StudentWriter
from everswarm.training.models import student_weights

Examples = Callable[[int], list[Example]]


def test_same_seed_gives_the_same_texts_in_any_order(tiny_student: Path, make_examples: Examples) -> None:
    examples = make_examples(4)
    first = StudentWriter(tiny_student, None, 1.0, 3, max_tokens=12)
    texts = {example.id: first(example) for example in examples}
    again = StudentWriter(tiny_student, None, 1.0, 3, max_tokens=12)
    assert {example.id: again(example) for example in reversed(examples)} == texts
    other = StudentWriter(tiny_student, None, 1.0, 4, max_tokens=12)
    assert {example.id: other(example) for example in examples} != texts
    assert all(text is None or (text.strip() == text and "\ufffd" not in text[-1:]) for text in texts.values())


def test_share_is_chosen_by_id_and_loads_nothing(make_examples: Examples, tmp_path: Path) -> None:
    examples = make_examples(400)
    writer = StudentWriter(tmp_path / "no-weights", None, 0.25, 0)
    chosen = [example.id for example in examples if writer.chooses(example)]
    assert 60 < len(chosen) < 140
    assert chosen == [example.id for example in examples[::-1] if writer.chooses(example)][::-1]
    assert all(writer(example) is None for example in examples if example.id not in chosen)
    assert not any(StudentWriter(tmp_path, None, 0.0, 0).chooses(example) for example in examples)


def test_adapter_changes_what_the_student_says(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_student), config)
    for name, part in model.named_parameters():
        if "lora_" in name:
            part.data *= 10
    model.save_pretrained(tmp_path)
    [example] = make_examples(1)
    base = StudentWriter(tiny_student, None, 1.0, 0, max_tokens=12)
    adapted = StudentWriter(tiny_student, tmp_path, 1.0, 0, max_tokens=12)
    assert base(example) != adapted(example)


def test_empty_answer_is_none(tiny_student: Path, make_examples: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StudentWriter(tiny_student, None, 1.0, 0)
    monkeypatch.setattr(writer, "_draw", lambda _prompt, _seed: [2])
    assert writer(make_examples(1)[0]) is None


@pytest.mark.model
def test_embedded_model_answers_in_words(make_examples: Examples) -> None:
    folder = student_weights(EMBEDDED_MODEL, load_settings().models_dir).folder
    answer = StudentWriter(folder, None, 1.0, 0, max_tokens=16, temperature=0.2)(make_examples(1)[0])
    assert answer is not None
    assert "km" in answer or "metre" in answer or "kilomet" in answer
    assert "<|im_" not in answer
