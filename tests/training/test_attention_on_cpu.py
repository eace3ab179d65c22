"""Attention of a student that is trained in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from conftest import random_samples
from torch.nn import functional

from graphcompress.fx.convert import to_fx
from graphcompress.training.attention_on_cpu import attend_in_float32
from graphcompress.training.prepare import run
from graphcompress.training.recomputed import checkpointed

CPU = torch.device("cpu")
END = "encoder.layer.0.output.LayerNorm"


def gradients(module, forward, *, bf16: bool) -> torch.Tensor:
    """Of one feature of the output with respect to all parameters, in one vector."""
    feed = random_samples(3).batch([0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = run(forward, feed, CPU)
    module.zero_grad()
    found["last_hidden_state"][..., 0].float().square().mean().backward()
    return torch.cat([value.grad.flatten() for value in module.parameters() if value.grad is not None])


@pytest.mark.parametrize("recomputed", [False, True])
def test_attention_computes_in_float32_and_the_rest_in_bfloat16(tiny_bert, monkeypatch, recomputed):
    module = to_fx(tiny_bert, taps=[END])
    exact = gradients(module, module, bf16=False)
    attend_in_float32(module)
    forward = checkpointed(module, [END]) if recomputed else module
    seen, call = [], functional.scaled_dot_product_attention

    def spy(query, *others, **options):
        seen.append(query.dtype)
        return call(query, *others, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    found = gradients(module, forward, bf16=True)
    # Two layers; under a checkpoint each is computed once more on the way back.
    assert seen == [torch.float32] * (4 if recomputed else 2)
    assert 1e-5 < float((found - exact).norm() / exact.norm()) < 0.03


def test_without_autocast_nothing_changes(tiny_bert):
    module, feed = to_fx(tiny_bert), random_samples(3).batch([0, 1, 2])
    before = run(module, feed, CPU)["last_hidden_state"]
    attend_in_float32(module)
    assert torch.equal(before, run(module, feed, CPU)["last_hidden_state"])
