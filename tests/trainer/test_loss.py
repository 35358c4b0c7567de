"""The fused, chunked loss against the textbook formula over whole logits under autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.loss import next_token_loss, plain_next_token_loss

Z_LOSS = 0.01
WIDTH, VOCABULARY = 6, 11


def _case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, WIDTH, generator=random).to(dtype).requires_grad_()
    head = (2 * torch.randn(VOCABULARY, WIDTH, generator=random)).to(dtype).requires_grad_()
    return hidden, head, torch.randint(0, VOCABULARY, (3, 8), generator=random), torch.tensor([True, False, True])


def _plain(hidden: Tensor, head: Tensor, ids: Tensor, kept: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    logits = (hidden @ head.T)[kept][:, :-1].float()
    nats = F.cross_entropy(logits.flatten(0, 1), ids[kept][:, 1:].flatten(), reduction="sum") / divisor
    return nats, Z_LOSS * logits.exp().sum(-1).log().square().sum() / divisor


@pytest.mark.parametrize("rows", [1, 5, 8, 24, 1000])
def test_loss_and_both_gradients_equal_the_plain_form_for_any_chunk(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("trainer.loss._CHUNK_ELEMENTS", {"cpu": rows * VOCABULARY})
    monkeypatch.setattr("trainer.loss._CACHED_ELEMENTS", 3 * VOCABULARY)
    hidden, head, ids, kept = _case()
    loss, parts = next_token_loss(hidden, head, ids, kept, 21, Z_LOSS)
    gradients = torch.autograd.grad(2 * loss, (hidden, head))
    nats, z_loss = _plain(hidden, head, ids, kept, 21)
    expected = torch.autograd.grad(2 * (nats + z_loss), (hidden, head))
    torch.testing.assert_close(parts[:2], torch.stack([nats, z_loss]).detach())
    torch.testing.assert_close(loss, nats + z_loss)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("rows", [5, 1000])
def test_bf16_gradients_are_as_near_to_exact_as_the_plain_forms(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("trainer.loss._CHUNK_ELEMENTS", {"cpu": rows * VOCABULARY})
    hidden, head, ids, kept = _case(torch.bfloat16)
    loss, parts = next_token_loss(hidden, head, ids, kept, 21, Z_LOSS)
    torch.testing.assert_close(parts[:2], torch.stack(_plain(hidden, head, ids, kept, 21)).detach())
    gradients = torch.autograd.grad(loss, (hidden, head))
    plain = torch.autograd.grad(sum(_plain(hidden, head, ids, kept, 21)), (hidden, head))
    wide = [each.detach().double().requires_grad_() for each in (hidden, head)]
    exact = torch.autograd.grad(sum(_plain(*wide, ids, kept, 21)), wide)
    for found, theirs, wanted in zip(gradients, plain, exact, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - wanted).norm() < 1.2 * (theirs - wanted).norm() + 2**-9 * wanted.norm()


def test_logits_of_a_hundred_do_not_overflow() -> None:
    hidden, head, ids, kept = _case()
    loss, _ = next_token_loss(100 * hidden, head, ids, kept, 21, 0.0)
    expected = F.cross_entropy((100 * hidden @ head.T)[kept][:, :-1].flatten(0, 1), ids[kept][:, 1:].flatten(), reduction="sum") / 21
    torch.testing.assert_close(loss, expected)


def test_a_masked_instance_adds_nothing_and_weighs_no_other_up() -> None:
    hidden, head, ids, _ = _case()
    loss, parts = next_token_loss(hidden, head, ids, torch.tensor([True, False, False]), 21, Z_LOSS)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient[1:].any()
    alone = F.cross_entropy(hidden[0, :-1] @ head.T, ids[0, 1:], reduction="sum").item()
    assert parts[0].item() == pytest.approx(alone / 21, rel=1e-6)


def test_the_last_position_predicts_nothing() -> None:
    hidden, head, ids, kept = _case()
    loss, _ = next_token_loss(hidden, head, ids, kept, 21, Z_LOSS)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert not gradient[:, -1].any() and gradient[0, :-1].any(dim=-1).all()


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.loss._CHUNK_ELEMENTS", {"cpu": 5 * VOCABULARY})
    hidden, head, ids, kept = _case()
    seen: list[int] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.ndim == 2 and out.shape[-1] == VOCABULARY:
                seen.append(len(out))
            return out

    with Spy():
        loss, _ = next_token_loss(hidden, head, ids, kept, 21, Z_LOSS)
        loss.backward()
    assert 5 in seen and max(rows for rows in seen if rows != WIDTH) == 5  # WIDTH: the head itself, transposed


def test_the_plain_loss_of_figure_8_equals_the_chunked_one_in_value_and_gradients() -> None:
    hidden, head, ids, kept = _case()
    found = [form(hidden, head, ids, kept, 21, Z_LOSS) for form in (plain_next_token_loss, next_token_loss)]
    torch.testing.assert_close(*found)
    gradients = [torch.autograd.grad(loss, (hidden, head)) for loss, _ in found]
    torch.testing.assert_close(*gradients)
