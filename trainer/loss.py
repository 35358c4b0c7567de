"""Next-token cross-entropy and z-loss with a constant divisor (OLMo 2 report, section 3.3.3), fused with the output head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits that exist at once. A chunk reads the head's weight twice and adds to its gradient once, so a chunk of few rows is bound by memory:
# a GPU wants thousands of rows (512 MiB of bf16 logits); on a CPU 160 rows of the largest vocabulary (64 MiB in fp32) cost as much as all.
_CHUNK_ELEMENTS = {"cuda": 1 << 28, "cpu": 1 << 24}
# A CPU's cache holds so many logits: read from there, all passes over them but the first cost half.
_CACHED_ELEMENTS = 1 << 18

Exponentials = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def next_token_loss(
    hidden: Tensor, head: Tensor, ids: Tensor, kept: Tensor, divisor: int, z_loss: float, exponentials: Exponentials | None = None
) -> tuple[Tensor, Tensor]:
    """The training loss of some instances, as their share of the global batch's, without ever holding all of their logits.

    Inside an instance each token but the first is predicted from those before it: L - 1 targets. An instance that is not kept
    contributes nothing, but its targets stay in the divisor, so that masking one does not weigh the others up.

    Args:
        hidden: normalised hidden states, shape (instances, L, width), fp32 or bf16.
        head: the output head's weight, shape (vocabulary, width), of the same dtype. Logits are rounded to it, all after them is fp32.
        ids: shape (instances, L), int64.
        kept: shape (instances,), bool.
        divisor: target positions of the whole global batch, masked ones included.
        z_loss: weight of the mean squared log-normaliser.
        exponentials: a compiled `row_exponentials`, where there is one.

    Returns:
        The loss to call backward on, once (cross-entropy plus weighted z-loss; summed over all micro-batches and ranks it is the batch's
        loss), and a detached fp32 tensor of shape (3,) holding those two parts and the largest logit, masked instances' included.
    """
    targets = ids.roll(-1, dims=1)
    weights = (kept[:, None] / divisor).expand(ids.shape).float().clone()
    weights[:, -1] = 0  # the last position's next token lies in another instance
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad)
    parts = _HeadLoss.apply(
        hidden.flatten(0, 1), head, targets.flatten(), weights.flatten(), z_loss, exponentials or cached_row_exponentials, gradients
    )
    return parts[:2].sum(), parts.detach()


def plain_next_token_loss(hidden: Tensor, head: Tensor, ids: Tensor, kept: Tensor, divisor: int, z_loss: float) -> tuple[Tensor, Tensor]:
    """What `next_token_loss` returns, of the same arguments, by torch's own functions over all logits at once, under autograd."""
    logits, weights = (hidden @ head.T).float(), kept.float() / divisor
    before = logits[:, :-1]
    nats = F.cross_entropy(before.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
    parts = torch.stack([(nats.sum(1) * weights).sum(), z_loss * (before.logsumexp(-1).square().sum(1) * weights).sum(), logits.amax()])
    return parts[:2].sum(), parts.detach()


def row_exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logit - its row's maximum) in the logits' dtype, where that is fp32 written over them; the rows' sums of it, and their logsumexp,
    in fp32."""
    largest = logits.amax(dim=1, keepdim=True)
    wide = logits.sub_(largest).exp_() if logits.dtype == torch.float32 else (logits.float() - largest.float()).exp()
    sums = wide.sum(dim=1)
    return wide.to(logits.dtype), sums, sums.log() + largest[:, 0].float()


def cached_row_exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`row_exponentials`, in fp32 on a CPU a few rows at a time."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return row_exponentials(logits)
    parts = [row_exponentials(rows)[1:] for rows in logits.split(max(1, _CACHED_ELEMENTS // logits.shape[1]))]
    sums, normalisers = zip(*parts, strict=True)
    return logits, torch.cat(sums), torch.cat(normalisers)


class _HeadLoss(torch.autograd.Function):
    """Sums of weight * cross-entropy and of weight * z_loss * logsumexp^2 over rows of hidden states, a chunk of rows at a time; and the
    largest logit.

    The gradients of both inputs are formed together with the loss, so that a chunk's logits are computed once and then forgotten. They
    are exact only when both sums are used with the same factor, as `next_token_loss` does. With e the exponentials of a row, s their sum
    and n its log-normaliser, the gradient of its logits is weight * ((1 + 2 * z_loss * n) * e / s - onehot(target)): the factor is a
    row's and the second term is one row of the head's weight, so neither needs another pass over the logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_loss: float, exponentials: Exponentials, gradients: bool
    ) -> Tensor:
        parts = torch.zeros(3, dtype=torch.float32, device=hidden.device)
        parts[2:].fill_(-math.inf)  # assigned to an index it would be a copy from the host, which a GPU waits for
        hidden_gradient = torch.empty_like(hidden) if gradients else None
        head_gradient = torch.zeros(head.shape, dtype=torch.float32, device=head.device) if gradients else None
        rows = min(len(hidden), max(1, _CHUNK_ELEMENTS.get(hidden.device.type, 1 << 24) // len(head)))
        # One for all chunks: memory that is new costs a CPU as much as half a product.
        buffer = torch.empty(rows, len(head), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(hidden), rows):
            states, target, weight = (each[start : start + rows] for each in (hidden, targets, weights))
            logits = torch.mm(states, head.T, out=buffer[: len(states)])
            at_target = logits.gather(1, target[:, None])[:, 0].float()
            shares, sums, normaliser = exponentials(logits)
            parts[0] += ((normaliser - at_target) * weight).sum()
            parts[1] += z_loss * (normaliser.square() * weight).sum()
            parts[2] = torch.maximum(parts[2], (normaliser - sums.log()).amax())
            if hidden_gradient is None or head_gradient is None:
                continue
            factor = (weight * (1 + 2 * z_loss * normaliser) / sums)[:, None]
            pulled = (shares @ head).float().mul_(factor).sub_(head[target] * weight[:, None])
            hidden_gradient[start : start + rows] = pulled
            _add_product(head_gradient, shares.T, (states * factor).to(states.dtype))
            head_gradient.index_add_(0, target, states * weight[:, None], alpha=-1)
        if hidden_gradient is not None and head_gradient is not None:
            ctx.gradients = hidden_gradient, head_gradient.to(head.dtype)
        return parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.gradients
        del ctx.gradients  # scaled in place and handed over, so there is no second time
        factor = grad_outputs[0][0]
        return tuple(each.mul_(factor) for each in gradients) + (None,) * 5


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in fp32."""
    if right.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
