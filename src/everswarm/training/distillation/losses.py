"""The losses on soft targets. Log-probabilities in, nats out; knows nothing of tokens, models or trainers.

A teacher is known at k candidates and by the mass of all others, the tail, which is one more outcome. The k are never
scaled up to 1: that would teach a sharper distribution than the teacher's (arXiv 2503.16870, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOWEST_LOG_PROBABILITY = -80.0  # keeps a loss finite where one side gives an outcome nothing at all
CERTAIN = 1e-6  # how far below certainty a chunk is taken to be at least, after the temperature


def forward_kl(student_top: Tensor, student_rest: Tensor, teacher_top: Tensor, teacher_tail: Tensor) -> Tensor:
    """Return KL(teacher || student) a token: sum over k of p (log p - log q), and the same for the tail.

    With k = vocab it is the dense KL of Hinton et al. (arXiv 1503.02531) at T = 1.

    Args:
        student_top: (tokens, k), log-probabilities of the teacher's candidates.
        student_rest: (tokens,), of everything else.
        teacher_top: (tokens, k); -inf pads.
        teacher_tail: (tokens,); -inf where there is no tail.

    Returns:
        (tokens,), not negative but for rounding.
    """
    real = teacher_top > -float("inf")
    top = teacher_top.masked_fill(~real, 0.0)
    inside = (top.exp() * (top - student_top)).masked_fill(~real, 0.0).sum(-1)
    has_tail = teacher_tail > -float("inf")
    tail = teacher_tail.masked_fill(~has_tail, 0.0)
    outside = (tail.exp() * (tail - student_rest.clamp_min(LOWEST_LOG_PROBABILITY))).masked_fill(~has_tail, 0.0)
    return inside + outside


def skew_reverse_kl(
    student_top: Tensor, student_rest: Tensor, teacher_top: Tensor, teacher_tail: Tensor, *, skew: float
) -> Tensor:
    """Return KL(student || (1 - skew) teacher + skew student) a token, over the k candidates and the tail.

    Skew 0 is the reverse KL; a little of the student in the mixture keeps its gradient bounded where the teacher is
    sure that it would not have said this (DistiLLM, arXiv 2402.03898, equation 5).

    Args:
        student_top: (tokens, k), log-probabilities of the teacher's candidates.
        student_rest: (tokens,), of everything else.
        teacher_top: (tokens, k); -inf pads.
        teacher_tail: (tokens,); -inf where there is no tail.
        skew: share of the student in the mixture, 0 to below 1.

    Returns:
        (tokens,), not negative but for rounding.
    """
    import torch

    real = teacher_top > -float("inf")
    student = torch.cat([student_top.masked_fill(~real, 0.0), student_rest[:, None]], -1)
    teacher = torch.cat([teacher_top.masked_fill(~real, 0.0), teacher_tail[:, None]], -1)
    student, teacher = (side.clamp_min(LOWEST_LOG_PROBABILITY) for side in (student, teacher))
    mixture = teacher
    if skew > 0:
        mixture = torch.logaddexp(
            teacher + torch.log1p(teacher.new_tensor(-skew)), student + teacher.new_tensor(skew).log()
        )
    counted = torch.cat([real, torch.ones_like(real[:, :1])], -1)
    return (student.exp() * (student - mixture)).masked_fill(~counted, 0.0).sum(-1)


def chunk_kl(student_chunk: Tensor, teacher_chunk: Tensor, *, temperature: float) -> Tensor:
    """Return how far the student's likelihood of each chunk is from the teacher's, comparable to nats.

    Approximate likelihood matching (arXiv 2503.20083, section 3): the binary KL of p^(1/T) and q^(1/T), here times T,
    so that its gradient stays of the size of a cross-entropy's for every T. For large T it tends to
    b - a - a log(b/a) with a = -log p, b = -log q.

    Args:
        student_chunk: (chunks,), log-probabilities of all the chunk's bytes.
        teacher_chunk: (chunks,), the same of the teacher.
        temperature: T, at least 1.

    Returns:
        (chunks,), not negative but for rounding.
    """
    import torch

    teacher = (teacher_chunk / temperature).clamp_max(-CERTAIN)
    # not clamped: where the student is surer than that the gradient must not vanish
    student = student_chunk / temperature - CERTAIN
    not_teacher, not_student = torch.log(-torch.expm1(teacher)), torch.log(-torch.expm1(student))
    happens = teacher.exp() * (teacher - student)
    fails = -torch.expm1(teacher) * (not_teacher - not_student)
    return temperature * (happens + fails)
