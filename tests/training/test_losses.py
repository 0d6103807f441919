"""Each loss against a plain, slow twin that works on whole distributions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from everswarm.training.distillation.losses import chunk_kl, forward_kl, skew_reverse_kl

VOCABULARY = 11


def sides(seed: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Dense log-probabilities of student and teacher (tokens, vocab), the teacher's k best ids, and its tail."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (3 * torch.randn(6, VOCABULARY, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)
    )
    ids = teacher.topk(k, -1).indices
    return student, teacher, ids, rest(teacher, ids)


def rest(dense: Tensor, ids: Tensor) -> Tensor:
    return dense.scatter(1, ids, -torch.inf).logsumexp(-1)


def coarse(dense: Tensor, ids: Tensor) -> list[list[float]]:
    """The probabilities of the k and of everything else, one outcome after another."""
    return [
        [*(math.exp(row[number]) for number in picked), sum(math.exp(p) for j, p in enumerate(row) if j not in picked)]
        for row, picked in zip(dense.tolist(), ids.tolist(), strict=True)
    ]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@given(st.integers(0, 1000), st.integers(1, VOCABULARY - 1))
def test_forward_kl_is_that_of_the_slow_twin(seed: int, k: int) -> None:
    student, teacher, ids, tail = sides(seed, k)
    found = forward_kl(student.gather(1, ids), rest(student, ids), teacher.gather(1, ids), tail)
    slow = [kl(p, q) for p, q in zip(coarse(teacher, ids), coarse(student, ids), strict=True)]
    assert found.tolist() == pytest.approx(slow, abs=1e-9)


@given(st.integers(0, 1000))
def test_forward_kl_with_every_token_a_candidate_is_the_dense_one(seed: int) -> None:
    student, teacher, ids, tail = sides(seed, VOCABULARY)
    student, teacher = student.float(), teacher.float()
    found = forward_kl(student.gather(1, ids), rest(student, ids), teacher.gather(1, ids), tail.float())
    dense = torch.nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    assert found.tolist() == pytest.approx(dense.tolist(), abs=1e-4)


@given(st.integers(0, 1000), st.integers(1, VOCABULARY - 1), st.sampled_from([0.0, 0.1, 0.9]))
def test_reverse_kl_is_that_of_the_slow_twin(seed: int, k: int, skew: float) -> None:
    student, teacher, ids, tail = sides(seed, k)
    found = skew_reverse_kl(student.gather(1, ids), rest(student, ids), teacher.gather(1, ids), tail, skew=skew)
    slow = [
        kl(q, [(1 - skew) * a + skew * b for a, b in zip(p, q, strict=True)])
        for p, q in zip(coarse(teacher, ids), coarse(student, ids), strict=True)
    ]
    assert found.tolist() == pytest.approx(slow, abs=1e-9)


@given(st.floats(-60, -1e-3), st.floats(-60, -1e-3), st.sampled_from([1.0, 5.0, 100.0]))
def test_chunk_kl_is_that_of_the_slow_twin(student: float, teacher: float, temperature: float) -> None:
    p, q = math.exp(teacher / temperature), math.exp(student / temperature)
    slow = temperature * kl([p, 1 - p], [q, 1 - q])
    found = chunk_kl(
        torch.tensor([student], dtype=torch.float64),
        torch.tensor([teacher], dtype=torch.float64),
        temperature=temperature,
    )
    assert found.item() == pytest.approx(slow, rel=2e-2, abs=2e-2)


def test_chunk_kl_of_a_high_temperature_is_its_limit() -> None:
    student, teacher = torch.tensor([-3.0, -0.5], dtype=torch.float64), torch.tensor([-1.0, -2.0], dtype=torch.float64)
    a, b = -teacher, -student
    found = chunk_kl(student, teacher, temperature=1000.0)
    assert found.tolist() == pytest.approx((b - a - a * (b / a).log()).tolist(), rel=5e-3)


def test_losses_are_nothing_where_both_sides_agree() -> None:
    _, teacher, ids, tail = sides(0, 4)
    top = teacher.gather(1, ids)
    assert forward_kl(top, tail, top, tail).abs().max() < 1e-12
    assert skew_reverse_kl(top, tail, top, tail, skew=0.1).abs().max() < 1e-12
    assert chunk_kl(tail, tail, temperature=100.0).abs().max() < 1e-3


def test_padding_counts_for_nothing() -> None:
    student, teacher, ids, tail = sides(3, 4)
    top, own, other = teacher.gather(1, ids), student.gather(1, ids), rest(student, ids)
    padded = torch.cat([top, torch.full_like(top[:, :2], -torch.inf)], 1)
    wider = torch.cat([own, own[:, :1], own[:, :1]], 1)
    assert torch.equal(forward_kl(wider, other, padded, tail), forward_kl(own, other, top, tail))
    assert torch.allclose(
        skew_reverse_kl(wider, other, padded, tail, skew=0.1), skew_reverse_kl(own, other, top, tail, skew=0.1)
    )


def test_candidates_are_not_scaled_up_to_certainty() -> None:
    """A student that gives the teacher's two candidates all its mass is wrong about the other 40 %."""
    teacher_top, teacher_tail = torch.tensor([[0.4, 0.2]]).log(), torch.tensor([0.4]).log()
    sharp_top, sharp_tail = torch.tensor([[0.66, 0.33]]).log(), torch.tensor([0.01]).log()
    assert forward_kl(sharp_top, sharp_tail, teacher_top, teacher_tail).item() > 1.0


def test_losses_stay_finite_where_the_student_gives_nothing() -> None:
    nothing = torch.tensor([-torch.inf])
    top = torch.tensor([[-0.1, -4.0]])
    for loss in (
        forward_kl(top, nothing, top, torch.tensor([-3.0])),
        skew_reverse_kl(top, nothing, top, torch.tensor([-torch.inf]), skew=0.0),
        chunk_kl(torch.tensor([-400.0]), torch.tensor([0.0]), temperature=100.0),
        chunk_kl(torch.tensor([0.0]), torch.tensor([-400.0]), temperature=100.0),
    ):
        assert torch.isfinite(loss).all()
