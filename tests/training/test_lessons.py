"""Texts in the student's tokens, weighed by the recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from everswarm.errors import StageFailedError
from everswarm.schemas.adapter import Recipe
from everswarm.schemas.dataset import Example
from everswarm.schemas.targets import TextSource
from everswarm.training.chat_tokens import prompt_ids
from everswarm.training.distillation.head import AnswerTargets, LossOptions, head_loss
from everswarm.training.distillation.lessons import Lesson, LessonMaker
from everswarm.training.distillation.scored_text import END_OF_TURN, ScoredText
from everswarm.training.distillation.trainer import batch_of

Examples = Callable[[int], list[Example]]
RECIPE = Recipe(
    name="test",
    rank=4,
    alpha=8,
    dropout=0.0,
    target_modules="all-linear",
    learning_rate=1e-3,
    batch_size=2,
    epochs=1,
    max_tokens=256,
    soft_target_weight=0.7,
    first_token_weight=0.1,
    chunk_weight=0.5,
    checkpoint_every_steps=10,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_student: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_student)


@pytest.fixture
def maker(tokenizer: Any) -> LessonMaker:
    return LessonMaker(tokenizer, RECIPE, vocabulary=len(tokenizer))


def said(
    text: bytes, pieces: list[bytes], *, source: TextSource = "target", ended: bool = True, logprob: float = -0.5
) -> ScoredText:
    """A teacher that gives each of its tokens 0.6, and a token of nobody the rest."""
    vocabulary = [*dict.fromkeys(pieces), END_OF_TURN]
    order = [vocabulary.index(piece) for piece in pieces] + ([len(vocabulary) - 1] if ended else [])
    ends = np.cumsum([len(piece) for piece in pieces]).tolist() + ([len(text)] if ended else [])
    count = len(order)
    return ScoredText(
        id="example-1",
        source=source,
        text=text,
        ended=ended,
        end=np.asarray(ends, dtype=np.int32),
        logprob=np.full(count, logprob, dtype=np.float32),
        vocabulary=vocabulary,
        top=np.asarray(order, dtype=np.int32)[:, None],
        top_logprob=np.full((count, 1), np.log(0.6), dtype=np.float32),
        tail_logprob=np.full(count, np.log(0.4), dtype=np.float32),
    )


def own_pieces(maker: LessonMaker, text: str) -> list[bytes]:
    return [maker.pieces[number] for number in maker.tokenizer(text, add_special_tokens=False)["input_ids"]]


def test_same_tokenizer_is_compared_at_every_token(maker: LessonMaker, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    [lesson] = maker.lessons(example, [said(example.target.encode(), own_pieces(maker, example.target))])
    assert lesson.ids[: lesson.prompt_tokens] == prompt_ids(maker.tokenizer, example.messages)
    assert lesson.ids[-1] == maker.end_of_turn
    assert lesson.forward_weight.tolist() == pytest.approx([0.7] * lesson.answer_tokens)
    assert lesson.soft_share.tolist() == pytest.approx([0.7] * lesson.answer_tokens)
    assert lesson.logprob.tolist() == pytest.approx([-0.5] * lesson.answer_tokens)
    assert lesson.top_ids[:, 0].tolist() == lesson.ids[lesson.prompt_tokens :]
    assert not lesson.chunk_logprob.size


def test_other_tokenizer_is_compared_by_chunks_and_first_tokens(maker: LessonMaker, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    text = example.target.encode()
    [lesson] = maker.lessons(example, [said(text, [text])])
    words = lesson.answer_tokens - 1
    assert lesson.chunk.tolist() == [0] * words + [-1]
    assert lesson.chunk_logprob.tolist() == pytest.approx([-0.5])
    assert lesson.chunk_weight.tolist() == pytest.approx([0.35])
    assert lesson.forward_weight.tolist() == pytest.approx([0.0] * words + [0.7])  # the student has no such token
    assert lesson.soft_share.tolist() == pytest.approx([0.7] * (words + 1))
    assert np.isneginf(lesson.logprob[:words]).all()


def test_text_without_log_probabilities_is_learnt_by_heart(maker: LessonMaker, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    silent = said(b"The teacher's own words.", [b"x"], source="teacher")
    nothing = np.zeros(0, dtype=np.float32)
    silent = ScoredText(
        "example-1", "teacher", silent.text, True, nothing.astype(np.int32), nothing, [],
        np.zeros((0, 0), dtype=np.int32), np.zeros((0, 0), dtype=np.float32), nothing,
    )  # fmt: skip
    target, own = maker.lessons(example, [silent])
    assert (target.source, own.source) == ("target", "teacher")
    for lesson in (target, own):
        assert set(lesson.text_weight.tolist()) == {1.0}
        assert not lesson.forward_weight.any()
        assert not lesson.soft_share.any()


def test_answer_of_the_student_is_compared_but_not_learnt_by_heart(maker: LessonMaker, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    rollout = said(b"I cannot say.", own_pieces(maker, "I cannot say."), source="rollout", ended=False)
    lessons = {lesson.source: lesson for lesson in maker.lessons(example, [rollout])}
    lesson = lessons["rollout"]
    assert not lesson.text_weight.any()
    assert not lesson.forward_weight.any()
    assert lesson.reverse_weight.tolist() == pytest.approx([0.7] * lesson.answer_tokens)
    assert lesson.ids[-1] != maker.end_of_turn  # it was cut off before its end


def test_cut_answer_of_a_teacher_does_not_teach_to_stop_there(maker: LessonMaker, make_examples: Examples) -> None:
    cut = said(b"1000 m", own_pieces(maker, "1000 m"), source="teacher", ended=False)
    lesson = next(one for one in maker.lessons(make_examples(1)[0], [cut]) if one.source == "teacher")
    assert lesson.ids[-1] != maker.end_of_turn


def test_several_teachers_of_one_text_make_one_lesson(maker: LessonMaker, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    text = example.target.encode()
    pieces = own_pieces(maker, example.target)
    [lesson] = maker.lessons(example, [said(text, pieces), said(text, [text])], [3.0, 1.0])
    assert lesson.chunk.max() == 0
    assert lesson.chunk_logprob[0] == pytest.approx(np.log(0.75 * np.exp(-0.5 * len(pieces)) + 0.25 * np.exp(-0.5)))


def test_long_text_is_cut_at_the_recipe_s_limit(tokenizer: Any, make_examples: Examples) -> None:
    example = make_examples(1)[0]
    prompt = len(prompt_ids(tokenizer, example.messages))
    maker = LessonMaker(tokenizer, RECIPE.model_copy(update={"max_tokens": prompt + 3}), vocabulary=len(tokenizer))
    text = example.target.encode()
    [lesson] = maker.lessons(example, [said(text, own_pieces(maker, example.target))])
    assert lesson.answer_tokens == 3
    assert len(lesson.text_weight) == len(lesson.top_ids) == len(lesson.chunk) == 3


def test_prompt_that_leaves_no_room_gives_no_lesson(tokenizer: Any, make_examples: Examples) -> None:
    maker = LessonMaker(tokenizer, RECIPE.model_copy(update={"max_tokens": 16}), vocabulary=len(tokenizer))
    example = make_examples(1)[0]
    assert maker.lessons(example, [said(example.target.encode(), own_pieces(maker, example.target))]) == []


def test_view_of_another_text_is_refused(maker: LessonMaker, make_examples: Examples) -> None:
    with pytest.raises(StageFailedError, match="soft targets of example 'example-1' are of another text"):
        maker.lessons(make_examples(1)[0], [said(b"Something else.", [b"Something else."])])


def test_empty_answer_is_refused(maker: LessonMaker, make_examples: Examples) -> None:
    empty = make_examples(1)[0].model_copy(update={"target": ""})
    with pytest.raises(StageFailedError, match="'example-1' has an empty answer"):
        maker.lessons(empty, [])


def test_tokenizer_larger_than_the_weights_is_refused(tokenizer: Any) -> None:
    with pytest.raises(StageFailedError, match=r"tokenizer has \d+ tokens, its weights only 10"):
        LessonMaker(tokenizer, RECIPE, vocabulary=10)


def test_parts_of_a_batch_teach_the_same_as_the_whole(
    maker: LessonMaker, make_examples: Examples, tiny_student: Path
) -> None:
    """One text at a time, as on a CPU, and padded side by side, as on a GPU."""
    model = AutoModelForCausalLM.from_pretrained(tiny_student, dtype=torch.float64)
    lessons: list[Lesson] = []
    for number, example in enumerate(make_examples(3)):
        text = (example.target * (number + 1)).encode()
        pieces = own_pieces(maker, text.decode()) if number else [text[:5], text[5:]]
        lessons += maker.lessons(example.model_copy(update={"target": text.decode()}), [said(text, pieces)])
    weights = model.model.layers[0].mlp.up_proj.weight
    found = []
    longest = max(len(lesson.ids) for lesson in lessons)
    for limit, parts in ((1, 3), (2 * longest, 2), (10_000, 1)):
        batch = batch_of(lessons, vocabulary=len(maker.pieces), tokens_at_once=limit)
        assert len(batch["parts"]) == parts
        total, gradient = 0.0, torch.zeros_like(weights)
        for part in batch["parts"]:
            hidden = model.base_model(
                input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False
            ).last_hidden_state.flatten(0, 1)
            loss = head_loss(
                hidden[part["positions"]],
                model.lm_head.weight.detach(),
                None,
                AnswerTargets(**{name: part[name] for name in AnswerTargets._fields}),
                block_ends=part["block_ends"],
                options=LossOptions(only_better=True, chunk_temperature=100.0, rollout_skew=0.1),
                count=batch["answers"],
            ).loss
            gradient += torch.autograd.grad(loss, weights)[0]
            total += loss.item()
        found.append((total, gradient))
    for total, gradient in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-9)
        assert torch.allclose(gradient, found[0][1], atol=1e-9)


def test_roll_out_that_teachers_scored_to_different_places_is_one_lesson(
    maker: LessonMaker, make_examples: Examples
) -> None:
    pieces = own_pieces(maker, "I cannot say.")
    whole = said(b"I cannot say.", pieces, source="rollout")
    cut = said(b"".join(pieces[:2]), pieces[:2], source="rollout", ended=False)
    [_, lesson] = maker.lessons(make_examples(1)[0], [cut, whole])
    assert lesson.source == "rollout"
    assert lesson.ids[-1] == maker.end_of_turn
    assert (lesson.reverse_weight > 0).sum() == 2  # as far as both speak


def test_own_answers_of_teachers_weigh_as_their_authors_do(maker: LessonMaker, make_examples: Examples) -> None:
    heavy = said(b"Yes.", own_pieces(maker, "Yes."), source="teacher")
    light = said(b"No.", own_pieces(maker, "No."), source="teacher")
    lessons = maker.lessons(make_examples(1)[0], [heavy, light], [4.0, 1.0])
    assert [lesson.text_weight[0] for lesson in lessons[1:]] == pytest.approx([0.25, 1.0])  # No, Yes
    assert lessons[0].text_weight[0] == 1.0


def test_end_of_turn_stays_that_behind_a_space_that_the_student_puts_in_front(maker: LessonMaker) -> None:
    inside, after_space = maker._student_ids([b"x", END_OF_TURN])
    assert inside[1] == after_space[1] == maker.end_of_turn


def test_chunks_that_weigh_nothing_leave_the_text_its_weight(tokenizer: Any, make_examples: Examples) -> None:
    recipe = RECIPE.model_copy(update={"chunk_weight": 0.0})
    example = make_examples(1)[0]
    text = example.target.encode()
    [lesson] = LessonMaker(tokenizer, recipe, vocabulary=len(tokenizer)).lessons(example, [said(text, [text])])
    assert not lesson.soft_share[:-1].any()
    assert not lesson.chunk_weight.any()


def test_error_names_the_example_and_not_its_words(maker: LessonMaker, make_examples: Examples) -> None:
    broken = said(b"\xf0\x9f\x98\x80", [b"\xf0\x9f\x98\x80"], source="teacher")
    maker.pieces = [b"?"] * len(maker.pieces)
    with pytest.raises(
        StageFailedError, match=r"^Example 'example-1': The tokenizer does not give a text of"
    ) as raised:
        maker.lessons(make_examples(1)[0], [broken])
    assert "km" not in str(raised.value)
