from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from everswarm.training.distillation.losses import soft_target_loss


def slow_twin(student_logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, tail_logprob: Tensor) -> list[float]:
    """The formula, a token and an outcome at a time."""
    losses = []
    for row in range(len(student_logits)):
        weights = [math.exp(value) for value in student_logits[row].tolist()]
        left, loss = sum(weights), 0.0
        for number, logprob in zip(top_ids[row].tolist(), top_logprobs[row].tolist(), strict=True):
            if logprob > -math.inf:
                loss += math.exp(logprob) * (logprob - math.log(weights[number] / sum(weights)))
                left -= weights[number]
        tail = tail_logprob[row].item()
        if tail > -math.inf:
            loss += math.exp(tail) * (tail - math.log(left / sum(weights)))
        losses.append(loss)
    return losses


def soft_targets(teacher_logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = teacher_logits.log_softmax(-1)
    top, ids = logprobs.topk(k, -1)
    return ids, top, logprobs.scatter(1, ids, -torch.inf).logsumexp(-1)


@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 5), vocab=st.integers(4, 30), data=st.data())
@settings(max_examples=50, deadline=None)
def test_equals_its_slow_twin(seed: int, tokens: int, vocab: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, vocab - 1))
    torch.manual_seed(seed)
    student = 3 * torch.randn(tokens, vocab, dtype=torch.float64)
    targets = soft_targets(3 * torch.randn(tokens, vocab, dtype=torch.float64), k)
    found = soft_target_loss(student, *targets)
    assert found.shape == (tokens,)
    assert found.tolist() == pytest.approx(slow_twin(student, *targets), abs=1e-9)
    assert (found > -1e-9).all()


def test_equals_dense_kl_when_k_is_the_vocabulary() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(6, 50), torch.randn(6, 50)
    dense = functional.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert torch.allclose(soft_target_loss(student, *soft_targets(teacher, 50)), dense, atol=1e-4)


def test_is_zero_for_a_student_that_equals_its_teacher() -> None:
    torch.manual_seed(2)
    logits = torch.randn(4, 40)
    assert soft_target_loss(logits, *soft_targets(logits, 5)).abs().max() < 1e-5


def test_padding_of_the_candidates_changes_nothing() -> None:
    torch.manual_seed(3)
    student = torch.randn(3, 30)
    ids, top, tail = soft_targets(torch.randn(3, 30), 4)
    padded_ids = torch.cat([ids, torch.zeros(3, 2, dtype=torch.long)], 1)
    padded_top = torch.cat([top, torch.full((3, 2), -torch.inf)], 1)
    assert torch.equal(
        soft_target_loss(student, padded_ids, padded_top, tail), soft_target_loss(student, ids, top, tail)
    )


def test_does_not_scale_the_candidates_up_to_one() -> None:
    """A teacher that is unsure (half its mass in the tail) pulls a sure student back to its own probability."""
    student = torch.zeros(1, 10, requires_grad=True)
    targets = torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), torch.tensor([math.log(0.5)])
    optimizer = torch.optim.SGD([student], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        soft_target_loss(student, *targets).sum().backward()
        optimizer.step()
    assert student.softmax(-1)[0, 0].item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("k", [1, 3, 6])  # 6: no tail is left
def test_gradient_is_right(k: int) -> None:
    torch.manual_seed(4)
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    ids, top, tail = soft_targets(torch.randn(2, 6, dtype=torch.float64), k)
    assert torch.autograd.gradcheck(lambda logits: soft_target_loss(logits, ids, top, tail), (student,))


def test_stays_finite_for_a_student_that_is_too_sure() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    loss = soft_target_loss(student, torch.tensor([[0]]), torch.tensor([[-1.0]]), torch.tensor([-0.46]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()
