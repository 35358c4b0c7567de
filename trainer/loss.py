"""Next-token cross-entropy and z-loss with a constant divisor (OLMo 2 report, section 3.3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits turned to fp32 at once: 16M elements are 64 MB, enough to fill a GPU and little beside the logits themselves.
_CHUNK_ELEMENTS = 1 << 24


def next_token_loss(logits: Tensor, ids: Tensor, kept: Tensor, divisor: int, z_loss: float) -> tuple[Tensor, Tensor]:
    """The training loss of some instances, as their share of the global batch's.

    Inside an instance each token but the first is predicted from those before it: L - 1 targets. An instance that is not kept
    contributes nothing, but its targets stay in the divisor, so that masking one does not weigh the others up.

    Args:
        logits: shape (instances, L, vocabulary), any float dtype; the sums are fp32.
        ids: shape (instances, L), int64.
        kept: shape (instances,), bool.
        divisor: target positions of the whole global batch, masked ones included.
        z_loss: weight of the mean squared log-normaliser.

    Returns:
        The loss to call backward on (cross-entropy plus weighted z-loss; summed over all micro-batches and ranks it is the batch's loss),
        and a detached fp32 tensor of shape (2,) holding those two parts.
    """
    targets = ids.roll(-1, dims=1)
    weights = (kept[:, None] / divisor).expand(ids.shape).float().clone()
    weights[:, -1] = 0  # the last position's next token lies in another instance
    parts = _WeightedLoss.apply(logits.flatten(0, 1), targets.flatten(), weights.flatten(), z_loss)
    return parts.sum(), parts.detach()


class _WeightedLoss(torch.autograd.Function):
    """Sums of weight * cross-entropy and of weight * z_loss * logsumexp^2, a chunk of rows at a time.

    The gradient is formed together with the loss, so that no fp32 copy of all logits ever exists and softmax is computed once.
    It is exact only when both sums are used with the same factor, as `next_token_loss` does.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor, z_loss: float) -> Tensor:
        gradient = torch.empty_like(logits)
        parts = torch.zeros(2, dtype=torch.float32, device=logits.device)
        rows = max(1, _CHUNK_ELEMENTS // logits.shape[1])
        for logit, target, weight, out in zip(*(each.split(rows) for each in (logits, targets, weights, gradient)), strict=True):
            wide = logit.to(torch.float32, copy=True)
            normaliser = wide.logsumexp(dim=1)
            at_target = (torch.arange(len(wide), device=wide.device), target)
            parts[0] += ((normaliser - wide[at_target]) * weight).sum()
            parts[1] += z_loss * (normaliser.square() * weight).sum()
            wide.sub_(normaliser[:, None]).exp_()  # the softmax
            wide.mul_((weight * (1 + 2 * z_loss * normaliser))[:, None])
            wide[at_target] -= weight
            out.copy_(wide)
        ctx.save_for_backward(gradient)
        return parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_outputs[0][0]), None, None, None
