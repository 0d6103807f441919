"""A teacher from Hugging Face weights, tiny and random unless marked `model`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.tiny_student import CHAT_TEMPLATE
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from everswarm.errors import StageFailedError
from everswarm.schemas.dataset import Example
from everswarm.schemas.interaction import Message
from everswarm.settings import TeacherSettings
from everswarm.training.chat_tokens import answer_ids, prompt_ids
from everswarm.training.distillation import prompts
from everswarm.training.distillation.prompts import end_of_turn_id, plain_text, teacher_messages, template_name
from everswarm.training.distillation.scored_text import ScoredText
from everswarm.training.distillation.teachers import Text
from everswarm.training.distillation.teachers import weights as weights_module
from everswarm.training.distillation.teachers.given_text import TeacherVocabulary, TokenScores, cut_prompt
from everswarm.training.distillation.teachers.weights import WeightsTeacher, open_weights_teacher, weights_revision

Examples = Callable[[int], list[Example]]


def target(example: Example) -> Text:
    return Text(example, example.target, "target")


def changed(folder: Path, into: Path, change: Callable[[Any], object]) -> Path:
    """Save the model of `folder` to `into` with something changed."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    change(model)
    model.save_pretrained(into)
    AutoTokenizer.from_pretrained(folder).save_pretrained(into)
    return into


def dense(folder: Path, example: Example, *, hindsight: bool = True) -> NDArray[np.float64]:
    """Return log-probabilities (answer tokens, vocab) of the model's own whole forward pass."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = prompt_ids(tokenizer, teacher_messages(example, hindsight))
    answer = [*answer_ids(tokenizer, example.target), end_of_turn_id(tokenizer)]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs: NDArray[np.float64] = logits.double().log_softmax(-1).numpy()
    return logprobs


def assert_same(scored: ScoredText, logprobs: NDArray[np.float64], answer: list[int], *, atol: float = 1e-4) -> None:
    k = scored.top.shape[1]
    assert scored.logprob == pytest.approx(logprobs[np.arange(len(answer)), answer], abs=atol)
    assert scored.top_logprob == pytest.approx(-np.sort(-logprobs, axis=1)[:, :k], abs=atol)
    tail = 1 - np.exp(-np.sort(-logprobs, axis=1)[:, :k]).sum(1)
    assert np.exp(scored.tail_logprob) == pytest.approx(tail, abs=atol)


@pytest.mark.parametrize("block_logits", [2**24, 1000])  # 1000: blocks of three positions
def test_scores_are_those_of_the_whole_forward_pass(
    tiny_student: Path, make_examples: Examples, monkeypatch: pytest.MonkeyPatch, block_logits: int
) -> None:
    monkeypatch.setattr(weights_module, "BLOCK_LOGITS", block_logits)
    [example] = make_examples(1)
    teacher = WeightsTeacher(tiny_student, model="tiny", top_k=5)
    [scored] = teacher.label([target(example)], batch=None, on_batch=lambda _: None)
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    answer = [*answer_ids(tokenizer, example.target), tokenizer.eos_token_id]
    assert_same(scored, dense(tiny_student, example), answer)
    assert (scored.id, scored.source, scored.text) == (example.id, "target", example.target.encode())
    assert scored.ended
    assert (len(scored.end), scored.end[-1], scored.end[-2]) == (len(answer), len(scored.text), len(scored.text))


def test_every_token_is_a_candidate_when_k_is_the_vocabulary(tiny_student: Path, make_examples: Examples) -> None:
    teacher = WeightsTeacher(tiny_student, model="tiny", top_k=100_000)
    scored = teacher.score(target(make_examples(1)[0]))
    assert np.isneginf(scored.tail_logprob).all()
    assert np.exp(scored.top_logprob.astype(np.float64)).sum(1) == pytest.approx(1.0, abs=1e-5)
    words = [[scored.vocabulary[number] for number in row] for row in scored.top]
    assert all(row.count(b"") == 1 for row in words)  # the end of turn, by no tokenizer's name


def test_rows_that_only_pad_the_head_are_no_candidates(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    folder = changed(tiny_student, tmp_path / "wide", lambda model: model.resize_token_embeddings(384))
    [example] = make_examples(1)
    teacher = WeightsTeacher(folder, model="wide", top_k=1000)
    size = len(AutoTokenizer.from_pretrained(folder))
    assert teacher.top_k == size < 384
    scored = teacher.score(target(example))
    assert np.exp(scored.tail_logprob) == pytest.approx(np.exp(dense(folder, example)[:, size:]).sum(1), abs=1e-5)


def test_grouped_search_finds_what_topk_finds() -> None:
    logits = torch.randn(7, 64 * 40, generator=torch.Generator().manual_seed(0))
    values, ids = weights_module._top(logits, 20)
    expected = logits.topk(20, dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


def test_softcapped_logits_are_the_models_own(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, max_position_embeddings=512,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    model.model.embed_tokens.weight.data *= 20
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    [example] = make_examples(1)
    scored = WeightsTeacher(tmp_path, model="gemma", top_k=5).score(target(example))
    assert_same(scored, dense(tmp_path, example), [*answer_ids(tokenizer, example.target), tokenizer.eos_token_id])


def test_architecture_with_logits_of_its_own_is_refused(tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.forward

    def doubled(self: LlamaForCausalLM, *arguments: object, **named: object) -> object:
        output = whole(self, *arguments, **named)
        output.logits = output.logits * 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", doubled)
    with pytest.raises(StageFailedError, match=r"architecture of tiny \(llama\) .* Use a GGUF of this model"):
        WeightsTeacher(tiny_student, model="tiny")


def test_half_precision_is_near_single(tiny_student: Path, make_examples: Examples) -> None:
    [example] = make_examples(1)
    whole = WeightsTeacher(tiny_student, model="tiny").score(target(example))
    half = WeightsTeacher(tiny_student, model="tiny", precision="float16").score(target(example))
    assert half.logprob.dtype == np.float32
    assert half.logprob == pytest.approx(whole.logprob, abs=0.02)


def test_four_bits_without_a_gpu_are_refused(tiny_student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageFailedError, match=r"nf4 needs a CUDA GPU .*float32 or float16, or a 4-bit GGUF"):
        WeightsTeacher(tiny_student, model="tiny", precision="nf4")


def test_values_that_are_no_numbers_are_refused(tiny_student: Path, make_examples: Examples, tmp_path: Path) -> None:
    [example] = make_examples(1)
    word = answer_ids(AutoTokenizer.from_pretrained(tiny_student), example.target)[0]

    def poison(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
        model.model.embed_tokens.weight.data[word] = torch.inf

    folder = changed(tiny_student, tmp_path / "overflows", poison)
    teacher = WeightsTeacher(folder, model="overflows")
    with pytest.raises(StageFailedError, match=r"not numbers for example 'example-1'.* Qwen2 .* float32 or nf4"):
        teacher.score(target(example))


def test_tokenizer_of_a_larger_model_is_refused(tiny_student: Path, tmp_path: Path) -> None:
    folder = changed(tiny_student, tmp_path / "small", lambda model: model.resize_token_embeddings(200))
    with pytest.raises(StageFailedError, match=r"tokenizer has \d+ tokens and its head only 200 rows"):
        WeightsTeacher(folder, model="small")


def test_empty_completion_is_refused_by_name(tiny_student: Path, make_examples: Examples) -> None:
    with pytest.raises(StageFailedError, match=r"Example 'example-1' has an empty completion \(rollout\)"):
        WeightsTeacher(tiny_student, model="tiny").score(Text(make_examples(1)[0], "", "rollout"))


def test_long_text_is_scored_up_to_the_limit_and_whole_characters(tiny_student: Path, make_examples: Examples) -> None:
    [example] = make_examples(1)
    teacher = WeightsTeacher(tiny_student, model="tiny", max_text_tokens=7)
    scored = teacher.score(Text(example, "€" * 20, "rollout"))  # three tokens each
    assert (scored.text.decode(), scored.ended, scored.tokens, scored.source) == ("€€", False, 6, "rollout")


def test_conversation_longer_than_the_context_keeps_its_end(tiny_student: Path, make_examples: Examples) -> None:
    [example] = make_examples(1)
    long = example.model_copy(update={"messages": [Message(role="user", content="x y " * 900), *example.messages]})
    scored = WeightsTeacher(tiny_student, model="tiny").score(target(long))
    assert scored.ended


def test_front_of_a_long_prompt_is_cut_behind_its_first_token() -> None:
    assert cut_prompt([1, 2, 3, 4, 5], 3) == [1, 4, 5]
    assert cut_prompt([1, 2, 3], 3) == [1, 2, 3]
    assert cut_prompt([1, 2, 3], 1) == cut_prompt([1, 2, 3], 0) == [1]


def test_closed_teacher_has_no_model(tiny_student: Path) -> None:
    teacher = WeightsTeacher(tiny_student, model="tiny")
    model = weakref.ref(teacher._logits._body)
    teacher.close()
    assert model() is None


def test_teacher_with_hindsight_reads_the_correction_first(make_examples: Examples) -> None:
    [example] = make_examples(1)
    asked = teacher_messages(example, True)
    assert [message.role for message in asked] == ["user", "assistant", "user"]
    assert asked[0] == asked[2]
    assert asked[1].content == example.target
    assert teacher_messages(example, False) == example.messages


def test_templates_have_names_with_versions() -> None:
    assert template_name(TeacherSettings()) == "chat-1/ask-again-1"
    assert template_name(TeacherSettings(hindsight=False, template="plain")) == "plain-1/as-asked-1"


def test_base_model_reads_plain_text_and_says_nothing_of_the_end(
    tiny_student: Path, make_examples: Examples, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.chat_template = None
    AutoModelForCausalLM.from_pretrained(tiny_student).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(StageFailedError, match=r'no chat template, .* template = "plain"; a student needs a chat'):
        WeightsTeacher(tmp_path, model="base")
    [example] = make_examples(1)
    scored = WeightsTeacher(tmp_path, model="base", template="plain", hindsight=False).score(target(example))
    assert not scored.ended
    assert (scored.text, b"" in scored.vocabulary[: len(tokenizer)]) == (example.target.encode(), False)
    assert plain_text(example.messages) == "User:\nHow many metres are 1 km?\n\nAssistant:\n"
    ids = prompts.prompt_ids(tokenizer, [Message(role="user", content="<|im_end|>")], "plain")
    assert tokenizer.eos_token_id not in ids


def test_template_without_a_generation_mark_is_refused(tiny_student: Path, make_examples: Examples) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.chat_template = CHAT_TEMPLATE.partition("{% if add_generation_prompt %}")[0]
    with pytest.raises(StageFailedError, match=r"no generation mark: add_generation_prompt changes nothing"):
        prompt_ids(tokenizer, make_examples(1)[0].messages)


def test_template_whose_answers_follow_at_once_needs_no_mark(tiny_student: Path) -> None:
    """As Mistral's: `[INST] question[/INST] answer</s>`."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_student)
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
        "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
        "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
    )
    ids = prompt_ids(tokenizer, [Message(role="user", content="3 km?")])
    assert tokenizer.decode(ids) == "[INST] 3 km?[/INST]"
    assert end_of_turn_id(tokenizer) == tokenizer.eos_token_id
    with pytest.raises(StageFailedError, match="refuses this conversation: no system role"):
        prompt_ids(tokenizer, [Message(role="system", content="Be brief."), Message(role="user", content="3 km?")])


def test_space_that_the_tokenizer_put_in_front_is_no_part_of_the_first_candidates(make_examples: Examples) -> None:
    vocabulary = TeacherVocabulary([b" he", b" ", b"he", b"llo", b"</s>"], end_of_turn=4, head_rows=6)
    text = Text(make_examples(1)[0], "hello", "target")
    answer = vocabulary.answer(text, [0, 3], limit_tokens=9)
    assert (answer.end.tolist(), answer.ended, vocabulary.nameless) == ([2, 5, 5], True, [5])
    scores = TokenScores(
        logprob=np.log(np.array([0.5, 0.5, 0.5], dtype=np.float32)),
        top=np.array([[0, 1, 2]] * 3, dtype=np.int32),
        top_logprob=np.log(np.array([[0.5, 0.25, 0.125]] * 3, dtype=np.float32)),
        tail_logprob=np.log(np.array([0.125] * 3, dtype=np.float32)),
    )
    scored = vocabulary.scored(text, answer, scores)
    words = [[scored.vocabulary[number] for number in row if number >= 0] for row in scored.top]
    assert words == [[b"he", b"he"], [b" he", b" ", b"he"], [b" he", b" ", b"he"]]
    assert np.exp(scored.top_logprob[0]) == pytest.approx([0.5, 0.125, 0.0])
    assert np.exp(scored.tail_logprob) == pytest.approx([0.375, 0.125, 0.125])


def test_revision_is_of_all_weights_and_opening_loads_nothing(tiny_student: Path, tmp_path: Path) -> None:
    assert len(weights_revision(tiny_student)) == 64
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    alone = weights_revision(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    assert weights_revision(tmp_path) != alone
    with pytest.raises(StageFailedError, match=r"has no model\*\.safetensors\. .*gguf:PATH"):
        weights_revision(tmp_path / "nowhere")
    opener = open_weights_teacher(
        TeacherSettings(source="weights", model="a", precision="float16"),
        folder=tmp_path, model="a", revision=alone, threads=1,
    )  # fmt: skip
    assert (opener.teacher.quantization, opener.teacher.template) == ("float16", "chat-1/ask-again-1")
    with pytest.raises(StageFailedError, match=r"has no config\.json"):
        opener.open()
