"""The chunked loss against the textbook formula under autograd."""

import pytest
import torch
import torch.nn.functional as F

from trainer.loss import next_token_loss

Z_LOSS = 0.01


def _case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 8, 11, generator=random)).to(dtype).requires_grad_()
    return logits, torch.randint(0, 11, (3, 8), generator=random), torch.tensor([True, False, True])


def _naive(logits: torch.Tensor, ids: torch.Tensor, kept: torch.Tensor, divisor: int) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits[kept][:, :-1].float()
    nats = F.cross_entropy(logits.flatten(0, 1), ids[kept][:, 1:].flatten(), reduction="sum") / divisor
    return nats, Z_LOSS * logits.exp().sum(-1).log().square().sum() / divisor


@pytest.mark.parametrize("chunk", [1, 33, 1 << 24])
def test_loss_and_gradient_equal_autograd(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("trainer.loss._CHUNK_ELEMENTS", chunk)
    logits, ids, kept = _case()
    loss, parts = next_token_loss(logits, ids, kept, 21, Z_LOSS)
    (gradient,) = torch.autograd.grad(2 * loss, logits)
    nats, z_loss = _naive(logits, ids, kept, 21)
    (expected,) = torch.autograd.grad(2 * (nats + z_loss), logits)
    torch.testing.assert_close(parts, torch.stack([nats, z_loss]).detach())
    torch.testing.assert_close(loss, nats + z_loss)
    torch.testing.assert_close(gradient, expected)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits, ids, kept = _case(torch.bfloat16)
    loss, parts = next_token_loss(logits, ids, kept, 21, Z_LOSS)
    torch.testing.assert_close(parts, torch.stack(_naive(logits, ids, kept, 21)).detach())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.dtype == torch.bfloat16


def test_a_masked_instance_adds_nothing_and_weighs_no_other_up() -> None:
    logits, ids, _ = _case()
    only_first = torch.tensor([True, False, False])
    loss, parts = next_token_loss(logits, ids, only_first, 21, Z_LOSS)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[1:].any()
    alone = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum").item()
    assert parts[0].item() == pytest.approx(alone / 21, rel=1e-6)


def test_the_last_position_predicts_nothing() -> None:
    logits, ids, kept = _case()
    loss, _ = next_token_loss(logits, ids, kept, 21, Z_LOSS)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, -1].any() and gradient[0, :-1].any(dim=-1).all()
