"""Modules that keep something from call to call: it goes in and comes out as tensors by name."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import graphcompress  # noqa: E402
from graphcompress.errors import UnsupportedModelError, UsageError  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402

PAST = ("past_key_values.0.key", "past_key_values.0.value")


class Attends(torch.nn.Module):
    """Two heads over a past that is a tuple of tuples, as older models take and return it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(
        self, x: torch.Tensor, past_key_values: tuple[tuple[torch.Tensor, ...], ...]
    ) -> dict[str, object]:
        query, key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        ((past_key, past_value),) = past_key_values
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        y = (query @ key.transpose(2, 3)).softmax(-1) @ value
        return {"y": y.transpose(1, 2).flatten(2), "past_key_values": ((key, value),)}


def test_a_past_of_tuples_is_tensors_by_name() -> None:
    module = Attends()
    past = (torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
    model = graphcompress.capture(module, {"x": torch.randn(1, 3, 8), "past_key_values": (past,)})
    assert [f"{value.name}{value.shape}" for value in model.graph.inputs] == [
        "x[batch,sequence,8]",
        *(f"{name}[batch,2,past,4]" for name in PAST),
    ]
    assert [value.name for value in model.graph.outputs] == ["y", "present.0.key", "present.0.value"]
    x, empty = torch.randn(3, 1, 8), torch.zeros(3, 2, 0, 4)
    with Runner(model) as run, torch.no_grad():
        found = run({"x": x.numpy(), **{name: empty.numpy() for name in PAST}})
        assert np.allclose(found["y"], module(x, ((empty, empty),))["y"].numpy(), atol=1e-6)


class Recurs(torch.nn.Module):
    """A simpler simple recurrent unit (arXiv:1908.03888): its past is one vector for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.forget, self.new = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> dict[str, torch.Tensor]:
        kept = self.forget(x).sigmoid()
        state = kept * state + (1 - kept) * self.new(x)
        return {"y": state.relu(), "state_after": state}


def test_a_plain_state_goes_in_and_comes_out() -> None:
    module = Recurs()
    model = graphcompress.capture(module, {"x": torch.randn(2, 1, 8), "state": torch.randn(2, 1, 8)})
    assert [f"{value.name}{value.shape}" for value in model.graph.outputs] == [
        "y[batch,1,8]",
        "state_after[batch,1,8]",
    ]
    x, state = torch.randn(5, 1, 8), torch.randn(5, 1, 8)
    with Runner(model) as run, torch.no_grad():
        found = run({"x": x.numpy(), "state": state.numpy()})
        assert np.allclose(found["state_after"], module(x, state)["state_after"].numpy(), atol=1e-6)


def test_a_cache_of_transformers_grows() -> None:
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    module = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        past = module(torch.randint(0, 40, (2, 5)), use_cache=True).past_key_values
    example = {
        "input_ids": torch.randint(0, 40, (2, 3)),
        "attention_mask": torch.ones(2, 8, dtype=torch.int64),
        "past_key_values": past,
    }
    model = graphcompress.capture(module, example)
    assert [f"{value.name}{value.shape}" for value in model.graph.inputs] == [
        "input_ids[batch,sequence]",
        "attention_mask[batch,past + sequence]",
        *(f"{name}[batch,2,past,8]" for name in PAST),
    ]
    assert [value.name for value in model.graph.outputs] == ["logits", "present.0.key", "present.0.value"]


def test_a_cache_that_cannot_be_taken_is_named() -> None:
    config = transformers.AutoConfig.for_model("llama", num_hidden_layers=1)
    fixed = transformers.StaticCache(config=config, max_cache_len=8)
    fixed.update(torch.zeros(2, 2, 5, 4), torch.zeros(2, 2, 5, 4), 0)
    x = torch.randn(2, 3, 8)
    with pytest.raises(UsageError, match="'past_key_values' is an empty DynamicCache"):
        graphcompress.capture(Attends(), {"x": x, "past_key_values": transformers.DynamicCache()})
    with pytest.raises(UnsupportedModelError, match="layers of StaticLayer, whose size is fixed"):
        graphcompress.capture(Attends(), {"x": x, "past_key_values": fixed})
