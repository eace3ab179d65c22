"""Schemes of quantisation: what is described, what includes what, what several targets have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.schemes import (
    INT8,
    INT8_CACHE,
    PER_CHANNEL,
    UINT8,
    Numbers,
    Scheme,
    common_schemes,
    described,
    integer_products,
    per_block,
)

INT4_BLOCKS = Scheme(weights=Numbers(4, per=per_block(32)))
FP8 = Scheme(Numbers(floating=True, per=PER_CHANNEL), Numbers(floating=True))


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (INT4_BLOCKS, "int4 weights per block of 32"),
        (FP8, "float8 weights per channel with activations in float8 (static)"),
        (INT8_CACHE, "int8 cache per head"),
        (Scheme(weights=Numbers(7, per=PER_CHANNEL)), "int8 weights of 7 bits per channel"),
    ],
)
def test_a_scheme_is_text(scheme: Scheme, text: str) -> None:
    assert described([scheme]) == text


def test_schemes_that_differ_in_activations_alone_are_said_together() -> None:
    assert described([*integer_products(UINT8, INT8, dynamic=True), INT4_BLOCKS]) == (
        "int8 weights per channel with activations in uint8 (static or dynamic or per token) or "
        "int8 (static or dynamic); "
        "int4 weights per block of 32"
    )


@pytest.mark.parametrize("scheme", [INT4_BLOCKS, FP8, INT8_CACHE, *integer_products(INT8)])
def test_a_scheme_includes_itself_and_no_other_kind(scheme: Scheme) -> None:
    assert scheme.includes(scheme)
    others = {INT4_BLOCKS, FP8, INT8_CACHE, Scheme(), *integer_products(INT8), *integer_products(UINT8)} - {
        scheme
    }
    assert not any(scheme.includes(other) for other in others)


def test_what_runs_all_bits_runs_fewer_of_the_same_type() -> None:
    (eight,), (seven,) = integer_products(INT8), integer_products(INT8, weight_bits=7)
    assert eight.includes(seven)
    assert not seven.includes(eight)
    assert eight.common(seven) == seven.common(eight) == seven
    int4 = replace(eight, weights=Numbers(4, per=PER_CHANNEL))
    assert eight.common(int4) is None


def test_common_schemes_keep_the_order_of_the_first() -> None:
    one, other = integer_products(UINT8, INT8, dynamic=True), integer_products(INT8, UINT8, weight_bits=7)
    assert common_schemes(one, other) == integer_products(UINT8, INT8, weight_bits=7)
    assert common_schemes(one, (INT4_BLOCKS, FP8)) == ()


def test_a_target_chooses_by_its_own_order() -> None:
    runs = Capabilities((FP8, *integer_products(INT8, UINT8)))
    assert runs.choose([*integer_products(UINT8, INT8), FP8]) == FP8
    assert runs.choose(integer_products(UINT8, INT8)) == integer_products(INT8)[0]
    assert runs.choose([INT4_BLOCKS]) is None
