"""Caches and tuples come apart into named tensors, and together again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import DynamicCache, EncoderDecoderCache  # noqa: E402

from graphcompress.capturing.nested import has_window, leaves, rebuilt, unbuildable  # noqa: E402

PAIR = [(torch.full((2, 4, 5, 8), float(n)), torch.full((2, 4, 5, 8), n + 0.5)) for n in range(2)]


def four(layer: str) -> list[str]:
    """Names of the tensors of a layer that attends to itself and to an encoder."""
    return [f"{layer}.{part}.{kind}" for part in ("decoder", "encoder") for kind in ("key", "value")]


def cross() -> EncoderDecoderCache:
    cache = EncoderDecoderCache(DynamicCache(PAIR), DynamicCache(PAIR[::-1]))
    cache.is_updated = {0: True, 1: True}
    return cache


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (DynamicCache(PAIR), ["p.0.key", "p.0.value", "p.1.key", "p.1.value"]),
        (
            cross(),
            [
                f"p.{n}.{part}.{kind}"
                for n in (0, 1)
                for part in ("decoder", "encoder")
                for kind in ("key", "value")
            ],
        ),
        (tuple(PAIR), ["p.0.key", "p.0.value", "p.1.key", "p.1.value"]),
        (
            [PAIR[0] + PAIR[1]],
            [f"p.0.{part}.{kind}" for part in ("decoder", "encoder") for kind in ("key", "value")],
        ),
        ({"h": torch.zeros(2, 3), "c": [torch.zeros(2, 3)] * 2}, ["p.h", "p.c.0", "p.c.1"]),
        (3, []),
    ],
    ids=["cache", "of an encoder too", "legacy", "legacy of an encoder too", "states", "a number"],
)
def test_tensors_have_names_and_come_back_in_the_same_place(value: object, names: list[str]) -> None:
    found = leaves("p", value)
    assert list(found) == names
    doubled = {name: tensor * 2 for name, tensor in found.items()}
    again = rebuilt("p", value, doubled)
    assert type(again) is type(value)
    assert all(torch.equal(tensor, doubled[name]) for name, tensor in leaves("p", again).items())
    assert all(torch.equal(tensor, found[name]) for name, tensor in leaves("p", value).items())


def test_a_cache_that_comes_back_grows_by_itself() -> None:
    cache = DynamicCache(PAIR)
    again = rebuilt("p", cache, leaves("p", cache))
    again.update(torch.zeros(2, 4, 1, 8), torch.zeros(2, 4, 1, 8), 0)
    assert (again.get_seq_length(), cache.get_seq_length()) == (6, 5)


def test_the_keys_of_an_encoder_stay_computed() -> None:
    again = rebuilt("p", cross(), leaves("p", cross()))
    assert again.is_updated == {0: True, 1: True}


def test_a_window_comes_back_as_a_layer_that_keeps_everything() -> None:
    config = transformers.AutoConfig.for_model("gemma2", num_hidden_layers=2, sliding_window=4)
    cache = DynamicCache(config=config)
    for layer, (key, value) in enumerate(PAIR):
        cache.update(key, value, layer)
    assert has_window(cache)
    again = rebuilt("p", cache, leaves("p", cache))
    assert not has_window(again)
    assert again.layers[0].get_seq_length() == cache.layers[0].keys.shape[2]


def test_a_layer_of_fixed_size_is_named() -> None:
    config = transformers.AutoConfig.for_model("llama", num_hidden_layers=1)
    cache = transformers.StaticCache(config=config, max_cache_len=8)
    cache.update(PAIR[0][0], PAIR[0][1], 0)
    assert unbuildable(cache) == "StaticLayer"
    assert unbuildable(DynamicCache(PAIR)) is None
    assert unbuildable(cross()) is None
