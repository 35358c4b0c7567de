"""Decay groups and schedules."""

import math

import pytest
import torch
from torch import nn

from olmo_model.config import ModelConfig
from olmo_model.model import Olmo2
from trainer.config import OptimizerConfig, ScheduleConfig
from trainer.optim import make_optimizer, schedule


def test_embeddings_are_not_decayed_and_all_else_is(model_dict: dict) -> None:
    model = Olmo2(ModelConfig(**model_dict))
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 1.0 if name == "model.embed_tokens.weight" else 1 - 0.5 * 0.1
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_steps_equal_a_plain_adamw() -> None:
    """Moments made beforehand and the fused kernel change nothing."""
    random = torch.Generator().manual_seed(0)
    weights, model = torch.randn(33, 7, generator=random), nn.Linear(7, 33, bias=False)
    with torch.no_grad():
        model.weight.copy_(weights)
    plain = nn.Parameter(weights.clone())
    config = OptimizerConfig(learning_rate=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)
    ours = make_optimizer(model, config)
    oracle = torch.optim.AdamW([plain], lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, foreach=False)
    for _ in range(5):
        gradient = torch.randn(33, 7, generator=random)
        model.weight.grad, plain.grad = gradient.clone(), gradient.clone()
        ours.step()
        oracle.step()
    torch.testing.assert_close(model.weight, plain, rtol=1e-6, atol=1e-7)


def test_the_7b_schedule_ends_where_the_report_cut_it() -> None:
    """Peak 3e-4, 2000 steps of warm-up, 10 % at 5e12 tokens; cut at step 928646, the rate is 6.1351e-5."""
    rate = schedule(ScheduleConfig("cosine", warmup_steps=2000, decay_steps=round(5e12 / (1024 * 4096))), 3e-4, 928646)
    assert rate(928645) == pytest.approx(6.1351e-5, abs=5e-10)
    assert rate(0) == pytest.approx(3e-4 / 2000)
    assert rate(1999) == pytest.approx(3e-4)


def test_the_cosine_falls_to_its_last_fraction_and_stays() -> None:
    rate = schedule(ScheduleConfig("cosine", warmup_steps=10, decay_steps=110, final_fraction=0.2), 1.0, 200)
    assert [rate(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rate(59) == pytest.approx(0.2 + 0.8 * 0.5)
    assert rate(34) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rate(109) == rate(150) == pytest.approx(0.2)


def test_an_anneal_starts_at_its_rate_and_ends_before_zero() -> None:
    rate = schedule(ScheduleConfig("linear_to_zero"), 6.15e-5, 8)
    assert rate(0) == 6.15e-5
    assert [rate(step) for step in range(8)] == pytest.approx([6.15e-5 * (8 - step) / 8 for step in range(8)])


def test_embeddings_are_decayed_when_asked(model_dict: dict) -> None:
    model = Olmo2(ModelConfig(**model_dict))
    optimizer = make_optimizer(model, OptimizerConfig(learning_rate=0.5, weight_decay=0.1, decay_embeddings=True))
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {0.1}
