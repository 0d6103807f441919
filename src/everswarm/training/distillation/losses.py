"""The loss on soft targets. Tensors in, tensors out; knows nothing of tokens or trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOWEST_LOG_PROBABILITY = -80.0  # keeps the loss finite where the student gives the tail nothing at all


def soft_target_loss(student_logits: Tensor, top_ids: Tensor, top_logprobs: Tensor, tail_logprob: Tensor) -> Tensor:
    """Return the forward KL divergence from the teacher to the student, a token at a time.

    The teacher is known at k tokens and by the mass of all others, the tail, which is one more outcome:
    sum over k of p (log p - log q) + p_tail (log p_tail - log q_tail), q_tail = 1 - sum over k of q.
    The k are never scaled up to 1: that would teach the student a sharper distribution than the teacher's
    (arXiv 2503.16870, section 3). With k = vocab it is the dense KL of Hinton et al. (arXiv 1503.02531) at T = 1.

    Args:
        student_logits: (tokens, vocab), not normalised.
        top_ids: (tokens, k), no id twice among the real entries of a row.
        top_logprobs: (tokens, k), natural logarithms. Padding is -inf, at the end of a row; the first is real.
        tail_logprob: (tokens,), -inf where there is no tail.

    Returns:
        (tokens,), in nats; not negative but for rounding.
    """
    import torch

    real = top_logprobs > -torch.inf
    ids = torch.where(real, top_ids, top_ids[:, :1])
    log_total = student_logits.logsumexp(-1)
    student_top = student_logits.gather(1, ids) - log_total[:, None]
    teacher_top = top_logprobs.masked_fill(~real, 0.0)
    inside = (teacher_top.exp() * (teacher_top - student_top)).masked_fill(~real, 0.0).sum(-1)
    # taken from the other logits themselves: 1 - sum would lose all digits where the student is sure
    rest = student_logits.scatter(1, ids, -torch.inf).logsumexp(-1) - log_total
    has_tail = tail_logprob > -torch.inf
    teacher_tail = tail_logprob.masked_fill(~has_tail, 0.0)
    student_tail = rest.clamp_min(LOWEST_LOG_PROBABILITY)
    outside = (teacher_tail.exp() * (teacher_tail - student_tail)).masked_fill(~has_tail, 0.0)
    return inside + outside
