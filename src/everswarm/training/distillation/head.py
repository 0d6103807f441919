"""From hidden states to the loss, a block of positions at a time: the logits of a whole batch never exist.

The vocabulary is the widest matrix of a small model. Each block's logits are made, turned into their own gradient in
place, and gone before the next; what stays is the gradient of the hidden states. The head itself is not trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from everswarm.errors import StageFailedError
from everswarm.training.distillation.losses import chunk_kl, forward_kl, skew_reverse_kl

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

BLOCK_NUMBERS = 2**23  # logits held at once: 32 MB
SMALLEST_BLOCK = 32  # positions; fewer waste the matrix product
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of a model's configuration
SAME_LOGITS = 1e-3  # of the largest one; half precision rounds


class AnswerTargets(NamedTuple):
    """What the answer tokens of a batch are compared with: `n` tokens, `k` candidates, `c` chunks."""

    ids: Tensor  # (n,), the tokens themselves
    top_ids: Tensor  # (n, k), the teacher's candidates, none twice in a row
    top_logprobs: Tensor  # (n, k); -inf pads, and fills where the teacher is silent
    tail_logprob: Tensor  # (n,); -inf where there is no tail
    logprob: Tensor  # (n,), the teacher's of the token itself; -inf where it is not known
    text_weight: Tensor  # (n,), of the cross-entropy: 1, or 0 for what the student wrote itself
    soft_share: Tensor  # (n,), of that weight, which the teacher's word takes the place of
    forward_weight: Tensor  # (n,), of KL(teacher || student)
    reverse_weight: Tensor  # (n,), of the skewed KL(student || teacher)
    text: Tensor  # (n,), which text of the batch a token is part of
    chunk: Tensor  # (n,), which chunk a token is part of; -1: none. The tokens of a chunk follow each other
    chunk_logprob: Tensor  # (c,), the teacher's
    chunk_weight: Tensor  # (c,)


class LossOptions(NamedTuple):
    """Numbers of the recipe that the losses need.

    With `only_better` a teacher is heard on a text that it finds at least as likely as the student does by now; of
    another only the text counts.
    """

    only_better: bool
    chunk_temperature: float
    rollout_skew: float


class HeadLoss(NamedTuple):
    """The loss, and its parts as sums, without gradient: (cross-entropy, KL, chunk KL), each not weighted."""

    loss: Tensor  # (), the weighted sum over tokens and chunks, divided by `count`
    sums: Tensor  # (3,)


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: AnswerTargets,
    *,
    block_ends: Sequence[int],
    options: LossOptions,
    count: int,
) -> HeadLoss:
    """Return the loss of `n` answer tokens, divided by `count`: the tokens of all parts of a batch.

    Args:
        hidden: (n, width), last hidden states, each at the position before its token.
        weight: (vocab, width) of the head, not trained.
        bias: (vocab,) or None.
        targets: what the tokens are compared with.
        block_ends: of `blocks`, so that no chunk lies in two blocks.
        options: numbers of the losses.
        count: what the sum of the losses is divided by.
    """
    ends = tuple(block_ends)
    loss, sums = _HeadLoss.apply(  # type: ignore[no-untyped-call]  # torch has no types for it
        hidden, weight, bias, targets, ends, options, count
    )
    return HeadLoss(loss, sums)


def blocks(chunk: Sequence[int], *, vocabulary: int) -> list[int]:
    """Return where each block of positions ends: about `BLOCK_NUMBERS` logits each, and never inside a chunk."""
    size = max(BLOCK_NUMBERS // vocabulary, SMALLEST_BLOCK)
    ends: list[int] = []
    end = 0
    while end < len(chunk):
        end = min(end + size, len(chunk))
        while end < len(chunk) and chunk[end] >= 0 and chunk[end] == chunk[end - 1]:
            end += 1
        ends.append(end)
    return ends


def check_head(model: PreTrainedModel, *, name: str) -> None:
    """Refuse a model whose logits are not its head times its last hidden states.

    Raises:
        StageFailedError: this architecture does more than that; a loss through the head would be of another model.
    """
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    changes = [name for name in AFTER_THE_HEAD if getattr(config, name, None) not in (None, 0, 1.0)]
    with torch.inference_mode():
        ids = torch.arange(1, 5, device=head.weight.device)[None]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        whole = model(input_ids=ids, use_cache=False).logits
        ours = torch.nn.functional.linear(hidden, head.weight, getattr(head, "bias", None))
    tolerance = SAME_LOGITS * whole.abs().max().item()
    if changes or not torch.allclose(whole.float(), ours.float(), rtol=0.0, atol=tolerance):
        raise StageFailedError(
            f"{name} ({type(model).__name__}) changes its logits after the head, as Gemma 2 and Cohere do; such a "
            "student cannot be trained here. Choose another student."
        )


class _HeadLoss(torch.autograd.Function):
    """Computes the gradient of `hidden` on the way forward, when the logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: AnswerTargets,
        block_ends: tuple[int, ...],
        options: LossOptions,
        count: int,
    ) -> tuple[Tensor, Tensor]:
        number = torch.promote_types(hidden.dtype, torch.float32)
        gradient = torch.zeros(hidden.shape, dtype=number, device=hidden.device) if hidden.requires_grad else None
        heard = _heard_over_blocks(hidden, weight, bias, targets, block_ends, number) if options.only_better else None
        total = hidden.new_zeros((), dtype=number)
        sums = hidden.new_zeros(3, dtype=number)
        start = 0
        for end in block_ends:
            part = _part(targets, start, end)
            logits = torch.nn.functional.linear(hidden[start:end], weight, bias).to(number)
            loss, terms = _loss_into_gradient(
                logits,
                part,
                options,
                heard=None if heard is None else heard[start:end],
                wants_gradient=gradient is not None,
            )
            total += loss
            sums += terms
            if gradient is not None:
                gradient[start:end] = (logits.to(weight.dtype) @ weight).to(number)
            start = end
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(count))
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(sums)
        return total / count, sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        [gradient] = ctx.saved_tensors
        return (gradient * gradients[0]).to(ctx.hidden_dtype), None, None, None, None, None, None


def _part(targets: AnswerTargets, start: int, end: int) -> AnswerTargets:
    """Return the rows `start` to `end` of what has a row a token; chunks are numbered through the batch."""
    rows = AnswerTargets(*(value[start:end] for value in targets))
    return rows._replace(chunk_logprob=targets.chunk_logprob, chunk_weight=targets.chunk_weight)


def _loss_into_gradient(
    logits: Tensor, part: AnswerTargets, options: LossOptions, *, heard: Tensor | None, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Return the block's loss and its parts; overwrite `logits` (tokens, vocab) with the loss's gradient.

    `heard` (tokens,) says where teachers count, if that is known; None: the block has the texts whole.

    All losses are functions of a few log-probabilities a token: its own, those of the teacher's candidates, and of the
    rest. Their gradients are small; that of a logit follows from them and from the probabilities q: own and candidates
    add theirs at their ids, the rest adds its own times q / q_rest, and all take away q times the sum.
    """
    real = part.top_logprobs > -torch.inf
    top_ids = torch.where(real, part.top_ids, part.top_ids[:, :1])
    own_logit = logits.gather(1, part.ids[:, None])[:, 0]
    top_logit = logits.gather(1, top_ids)
    highest = logits.amax(-1, keepdim=True)
    powers = logits.sub_(highest).exp_()
    taught = real[:, 0]
    top_power = powers.gather(1, top_ids).masked_fill(~real, 0.0)
    # silent rows have one rest: everything
    powers.scatter_(1, top_ids, torch.where(taught[:, None], 0.0, powers.gather(1, top_ids)))
    rest_power = powers.sum(-1)
    log_total = (rest_power + top_power.sum(-1)).log() + highest[:, 0]
    with torch.enable_grad():
        own = (own_logit - log_total).requires_grad_()
        top = (top_logit - log_total[:, None]).requires_grad_()
        rest = (rest_power.log() + highest[:, 0] - log_total).requires_grad_()
        if heard is None:
            heard = _heard(own.detach(), part) if options.only_better else torch.ones_like(own, dtype=torch.bool)
        loss, terms = _weighted(own, top, rest, part, options, heard=heard.to(own.dtype))
    if wants_gradient:
        own_gradient, top_gradient, rest_gradient = (
            torch.zeros_like(value) if found is None else found
            for value, found in zip(
                (own, top, rest), torch.autograd.grad(loss, (own, top, rest), allow_unused=True), strict=True
            )
        )
        top_gradient = top_gradient.masked_fill(~real, 0.0)
        through_rest = torch.where(rest_power > 0, rest_gradient / rest_power, 0.0)
        taken = (own_gradient + top_gradient.sum(-1) + rest_gradient) / (rest_power + top_power.sum(-1))
        powers.mul_((through_rest - taken)[:, None])
        powers.scatter_add_(1, top_ids, top_gradient - top_power * taken[:, None])
        powers.scatter_add_(1, part.ids[:, None], own_gradient[:, None])
    return loss.detach(), terms


def _weighted(
    own: Tensor, top: Tensor, rest: Tensor, part: AnswerTargets, options: LossOptions, *, heard: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of all losses of a block, and (cross-entropy, KL, chunk KL) as plain sums."""
    kl = chunks = own.new_zeros(())
    loss = -(part.text_weight * (1 - part.soft_share * heard) * own).sum()
    inside = part.chunk >= 0
    if inside.any():
        numbers = part.chunk[inside]
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        teacher = part.chunk_logprob[first:last]
        student = own.new_zeros(last - first).index_add(0, numbers - first, own[inside])
        heard_chunk = heard.new_zeros(last - first).index_copy(0, numbers - first, heard[inside])
        found = chunk_kl(student, teacher, temperature=options.chunk_temperature)
        chunks = found.detach().sum()
        loss = loss + (part.chunk_weight[first:last] * heard_chunk * found).sum()
    forward, reverse = part.forward_weight > 0, part.reverse_weight > 0
    if forward.any():
        found = forward_kl(top[forward], rest[forward], part.top_logprobs[forward], part.tail_logprob[forward])
        kl = kl + found.detach().sum()
        loss = loss + (part.forward_weight[forward] * heard[forward] * found).sum()
    if reverse.any():
        found = skew_reverse_kl(
            top[reverse],
            rest[reverse],
            part.top_logprobs[reverse],
            part.tail_logprob[reverse],
            skew=options.rollout_skew,
        )
        kl = kl + found.detach().sum()
        loss = loss + (part.reverse_weight[reverse] * found).sum()
    return loss, torch.stack([-own.detach().sum(), kl, chunks])


def _heard_over_blocks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: AnswerTargets,
    block_ends: Sequence[int],
    number: torch.dtype,
) -> Tensor | None:
    """Return `_heard` of texts that lie in several blocks, which takes the head a second time; None: in one each."""
    if all(targets.text[end] != targets.text[end - 1] for end in block_ends[:-1]):
        return None
    own, start = [], 0
    for end in block_ends:
        logits = torch.nn.functional.linear(hidden[start:end], weight, bias).to(number)
        own.append(logits.gather(1, targets.ids[start:end, None])[:, 0] - logits.logsumexp(-1))
        start = end
    return _heard(torch.cat(own), targets)


def _heard(own: Tensor, part: AnswerTargets) -> Tensor:
    """Return of each token (tokens,) whether the teacher is heard on its text.

    Compared are the tokens and chunks whose likelihood the teacher knows. The student's own answers have no person's
    words in them that could be more right than the teacher.
    """
    exact, inside = part.logprob > -torch.inf, part.chunk >= 0
    texts = own.new_zeros(int(part.text.max()) + 1 if len(part.text) else 0)
    lead = texts.index_add(0, part.text[exact], (part.logprob - own)[exact])
    if inside.any():
        first = inside & (part.chunk != torch.cat([part.chunk.new_tensor([-1]), part.chunk[:-1]]))
        lead = lead.index_add(0, part.text[first], part.chunk_logprob[part.chunk[first]].to(own.dtype))
        lead = lead.index_add(0, part.text[inside], -own[inside])
    return (lead >= 0)[part.text] | (part.text_weight == 0)
