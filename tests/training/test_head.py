"""The blockwise loss against one that holds all logits and lets autograd work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from everswarm.errors import StageFailedError
from everswarm.training.distillation.head import (
    AnswerTargets,
    LossOptions,
    blocks,
    check_head,
    head_loss,
)
from everswarm.training.distillation.losses import chunk_kl, forward_kl, skew_reverse_kl

TOKENS, WIDTH, VOCABULARY, K = 9, 5, 17, 3
OPTIONS = LossOptions(only_better=False, chunk_temperature=100.0, rollout_skew=0.1)
BETTER = OPTIONS._replace(only_better=True)
CHUNK = [-1, 0, 0, -1, 1, 1, 1, -1, -1]


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, AnswerTargets]:
    """Hidden states, head, bias and targets with every kind of token: silent, padded, on both sides, in chunks."""
    torch.manual_seed(seed)
    hidden, weight = (
        torch.randn(TOKENS, WIDTH, dtype=torch.float64),
        torch.randn(VOCABULARY, WIDTH, dtype=torch.float64),
    )
    teacher = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64).log_softmax(-1)
    top, ids = teacher.topk(K, -1)
    tail = teacher.scatter(1, ids, -torch.inf).logsumexp(-1)
    top[3], tail[3] = -torch.inf, -torch.inf
    top[5, 1:] = -torch.inf
    targets = AnswerTargets(
        ids=torch.cat([ids[:4, 0], torch.randint(0, VOCABULARY, (5,))]),
        top_ids=ids,
        top_logprobs=top,
        tail_logprob=tail,
        logprob=(-5 * torch.rand(TOKENS, dtype=torch.float64)).masked_fill(torch.tensor(CHUNK) >= 0, -torch.inf),
        text_weight=torch.tensor([1, 1, 1, 1, 0, 0, 0, 1, 1], dtype=torch.float64),
        soft_share=torch.rand(TOKENS, dtype=torch.float64),
        forward_weight=torch.tensor([1, 0, 0.5, 0, 0, 1, 0, 0.3, 0], dtype=torch.float64),
        reverse_weight=torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0.7], dtype=torch.float64),
        text=torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]),
        chunk=torch.tensor(CHUNK),
        chunk_logprob=torch.tensor([-2.0, -0.5], dtype=torch.float64),
        chunk_weight=torch.tensor([0.7, 0.9], dtype=torch.float64),
    )
    return hidden.requires_grad_(), weight, torch.randn(VOCABULARY, dtype=torch.float64), targets


def heard(own: Tensor, targets: AnswerTargets, rows: Tensor, options: LossOptions) -> bool:
    """Whether the teacher counts for these rows, one text: all that it knows of it, it finds at least as likely."""
    if not options.only_better or targets.text_weight[rows].sum() == 0:
        return True
    exact = rows & (targets.logprob > -torch.inf)
    chunks = sorted(set(targets.chunk[rows].tolist()) - {-1})
    theirs = targets.logprob[exact].sum() + targets.chunk_logprob[chunks].sum()
    return bool(theirs >= own[exact | (rows & (targets.chunk >= 0))].sum())


def plain(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: AnswerTargets,
    options: LossOptions = OPTIONS,
) -> Tensor:
    """The same loss with all logits at once."""
    logprobs = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    own = logprobs.gather(1, targets.ids[:, None])[:, 0]
    total = torch.zeros((), dtype=torch.float64)
    for row in range(TOKENS):
        trusted = heard(own, targets, targets.text == targets.text[row], options)
        total = total - targets.text_weight[row] * (1 - targets.soft_share[row] * trusted) * own[row]
        real = targets.top_logprobs[row] > -torch.inf
        if not real.any():
            continue
        ids = targets.top_ids[row][real]
        others = torch.ones(VOCABULARY, dtype=torch.bool)
        others[ids] = False
        views = (
            logprobs[row][ids][None],
            logprobs[row][others].logsumexp(-1)[None],
            targets.top_logprobs[row][real][None],
            targets.tail_logprob[row][None],
        )
        total = total + targets.forward_weight[row] * trusted * forward_kl(*views)[0]
        total = total + targets.reverse_weight[row] * skew_reverse_kl(*views, skew=OPTIONS.rollout_skew)[0]
    for number, teacher in enumerate(targets.chunk_logprob):
        student = own[targets.chunk == number].sum()[None]
        row = CHUNK.index(number)
        if heard(own, targets, targets.text == targets.text[row], options):
            temperature = options.chunk_temperature
            total = total + targets.chunk_weight[number] * chunk_kl(student, teacher[None], temperature=temperature)[0]
    return total / TOKENS


def found(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: AnswerTargets,
    ends: Sequence[int],
    options: LossOptions = OPTIONS,
) -> Tensor:
    return head_loss(hidden, weight, bias, targets, block_ends=ends, options=options, count=TOKENS).loss


@pytest.mark.parametrize("options", [OPTIONS, BETTER])
@pytest.mark.parametrize("ends", [[9], [3, 7, 9], [1, 3, 4, 7, 8, 9]])
def test_loss_and_gradient_are_those_of_the_plain_twin(ends: list[int], options: LossOptions) -> None:
    for seed in range(5):
        hidden, weight, bias, targets = case(seed)
        expected = plain(hidden, weight, bias, targets, options)
        ours = found(hidden, weight, bias, targets, ends, options)
        assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
        [wanted] = torch.autograd.grad(expected, hidden)
        [got] = torch.autograd.grad(ours, hidden)
        assert torch.allclose(got, wanted, atol=1e-10)


@pytest.mark.parametrize("options", [OPTIONS, BETTER])
def test_gradient_is_that_of_finite_differences(options: LossOptions) -> None:
    hidden, weight, bias, targets = case(7)
    assert torch.autograd.gradcheck(lambda states: found(states, weight, bias, targets, [4, 9], options), (hidden,))


def test_teacher_that_finds_the_words_less_likely_than_the_student_is_not_heard() -> None:
    """The person is right: then only the text counts, as without a teacher."""
    hidden, weight, bias, targets = case(4)
    unsure = targets._replace(
        logprob=torch.full_like(targets.logprob, -50.0),
        chunk_logprob=torch.full_like(targets.chunk_logprob, -50.0),
        text_weight=torch.ones_like(targets.text_weight),
        reverse_weight=torch.zeros_like(targets.reverse_weight),
    )
    logprobs = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    expected = -logprobs.gather(1, targets.ids[:, None]).mean()
    assert found(hidden, weight, bias, unsure, [9], BETTER).item() == pytest.approx(expected.item())


def test_gradient_is_scaled_by_what_comes_after() -> None:
    hidden, weight, bias, targets = case(1)
    [once] = torch.autograd.grad(found(hidden, weight, bias, targets, [9]), hidden)
    [thrice] = torch.autograd.grad(3 * found(hidden, weight, bias, targets, [9]), hidden)
    assert torch.allclose(thrice, 3 * once)


def test_loss_without_gradient_needs_none() -> None:
    hidden, weight, bias, targets = case(2)
    with torch.no_grad():
        assert not found(hidden.detach(), weight, bias, targets, [9]).requires_grad


def test_parts_are_told_unweighted() -> None:
    hidden, weight, bias, targets = case(3)
    sums = head_loss(hidden, weight, bias, targets, block_ends=[4, 9], options=OPTIONS, count=TOKENS).sums
    logprobs = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
    assert sums[0].item() == pytest.approx(-logprobs.gather(1, targets.ids[:, None]).sum().item())
    assert sums[1] > 0
    assert sums[2] > 0


@settings(max_examples=50)
@given(st.lists(st.integers(1, 6), max_size=40), st.sampled_from([2**18, 2**20, 2**23]))
def test_blocks_never_cut_a_chunk(lengths: list[int], vocabulary: int) -> None:
    chunk = [number if number % 3 else -1 for number, length in enumerate(lengths) for _ in range(length)]
    ends = blocks(chunk, vocabulary=vocabulary)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(chunk)
    assert all(chunk[end] < 0 or chunk[end] != chunk[end - 1] for end in ends[:-1])


def test_no_block_holds_the_logits_of_a_long_batch() -> None:
    ends = blocks([-1] * 10_000, vocabulary=128_256)
    assert max(end - start for start, end in zip([0, *ends], ends, strict=False)) * 128_256 <= 2**23


def test_student_that_changes_its_logits_is_refused(tiny_student: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_student)
    check_head(model, name="tiny/student")
    forward = model.forward

    def capped(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = 3 * torch.tanh(output.logits / 3) + 1
        return output

    model.forward = capped
    with pytest.raises(StageFailedError, match=r"tiny/student .* changes its logits after the head"):
        check_head(model, name="tiny/student")


def test_teacher_is_heard_on_the_texts_that_it_finds_likely_and_on_no_others() -> None:
    hidden, weight, bias, targets = case(5)
    likely = targets._replace(
        logprob=torch.tensor(
            [0.0, -torch.inf, -torch.inf, 0.0, -torch.inf, -torch.inf, -torch.inf, -50.0, -50.0]
        ).double(),
        chunk_logprob=torch.tensor([0.0, -50.0], dtype=torch.float64),
        text_weight=torch.ones_like(targets.text_weight),
    )
    only_first = likely._replace(
        forward_weight=likely.forward_weight * (likely.text == 0),
        soft_share=likely.soft_share * (likely.text == 0),
        chunk_weight=torch.tensor([0.7, 0.0], dtype=torch.float64),
    )
    heard_ones = found(hidden, weight, bias, likely, [9], BETTER)
    assert heard_ones.item() == pytest.approx(found(hidden, weight, bias, only_first, [9]).item())
