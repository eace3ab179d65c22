"""A masked model and the one that is cut answer the same, whatever is scored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import texts
from bert import Bert
from conftest import random_samples
from experts_models import BLOCKS, DENSE, HIDDEN, answers, mixture, rows

pytest.importorskip("torch")

from masked_models import PRESETS, attached, computed, cut_copy, shuffled

from graphcompress.analysis.linears import linears
from graphcompress.coupling.couplings import couplings
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.blockprune.compact import compact
from graphcompress.passes.blockprune.scattered import store_sparse
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

LARGEST = 1e-5


def error(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest difference, as a share of the largest output."""
    return max(float(np.abs(one[name] - other[name]).max() / np.abs(one[name]).max()) for name in one)


def outputs(model: Model) -> dict[str, np.ndarray]:
    with Runner(model) as runner:
        return runner(random_samples(6).batch([0, 3, 5]))


def set_array(model: Model, part: str, change) -> None:
    """Change what is stored under the name that holds ``part``."""
    (value,) = (value for value in model.initializers() if part in value.name)
    array = value.const_value.numpy().copy()
    change(array)
    Rewriter(model, Context()).overwrite(value, array)


def sizes(model: Model, kind: str) -> list[int]:
    return [group.size for group in couplings(model) if group.kind == kind]


@pytest.mark.parametrize("name", PRESETS)
def test_masked_is_stored_is_cut(tiny_bert: Model, name: str) -> None:
    work = attached(tiny_bert, PRESETS[name])
    shuffled(work, kept=0.3)
    trained = computed(work, random_samples(6).batch([0, 3, 5]))
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    smaller = cut_copy(tiny_bert)
    assert error(trained, outputs(tiny_bert)) <= LARGEST
    assert error(trained, outputs(smaller)) <= LARGEST
    assert smaller.parameters < tiny_bert.parameters


@pytest.mark.parametrize("name", PRESETS)
def test_the_density_that_is_counted_is_that_of_what_is_cut(tiny_bert: Model, name: str) -> None:
    work = attached(tiny_bert, PRESETS[name])
    shuffled(work, kept=0.3)
    at = [each.mask().numpy() for each in work.scores]
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    names = {site.weight.name for site in work.layout.sites}
    weights = [each.dense() for each in linears(cut_copy(tiny_bert)) if each.weight.name in names]
    assert work.amounts.compact_density(at) * work.amounts.total == pytest.approx(
        sum(w.size for w in weights)
    )
    entries = sum(np.count_nonzero(weight) for weight in weights)
    assert work.amounts.density(at) * work.amounts.total == pytest.approx(entries)


def test_a_head_goes_without_values_or_output_and_stays_without_queries_or_keys(tiny_bert: Model) -> None:
    for part, head in (("query", 0), ("key", 1), ("value", 2)):
        for kind in ("weight", "bias"):
            name = f"layer.0.attention.self.{part}.{kind}"
            set_array(tiny_bert, name, lambda array, head=head: array[..., 8 * head : 8 * head + 8].fill(0))
    set_array(tiny_bert, "layer.0.attention.output.dense.weight", lambda array: array[24:].fill(0))
    smaller = cut_copy(tiny_bert)
    assert sizes(smaller, "head") == [2, 4]
    assert error(outputs(tiny_bert), outputs(smaller)) <= LARGEST


def test_what_a_bias_alone_makes_goes_into_the_next_bias(tiny_bert: Model) -> None:
    set_array(tiny_bert, "layer.0.intermediate.dense.weight", lambda array: array[:, 10:50].fill(0))
    smaller = cut_copy(tiny_bert)
    assert sizes(smaller, "ffn") == [24, 64]
    assert error(outputs(tiny_bert), outputs(smaller)) <= LARGEST


@pytest.mark.parametrize(("part", "kind"), [("output.dense", "ffn"), ("attention.output.dense", "head")])
def test_of_what_gives_nothing_at_all_the_bias_stays_alone(tiny_bert: Model, part: str, kind: str) -> None:
    set_array(tiny_bert, f"layer.1.{part}.weight", lambda array: array.fill(0))
    smaller = cut_copy(tiny_bert)
    assert len(sizes(smaller, kind)) == 1
    assert not list(linears(smaller, f"*layer.1.{part}*"))
    assert error(outputs(tiny_bert), outputs(smaller)) <= LARGEST


@pytest.mark.parametrize("shared", [False, True])
def test_of_constant_nodes_alone_the_bias_stays_with_what_they_give(tiny_bert: Model, shared: bool) -> None:
    set_array(tiny_bert, "layer.1.intermediate.dense.weight", lambda array: array.fill(0))
    if shared:
        one, other = linears(tiny_bert, "*layer.?.output.dense*")
        Rewriter(tiny_bert, Context()).set_input(other.output.producer(), 1, one.bias)
    smaller = cut_copy(tiny_bert)
    assert sizes(smaller, "ffn") == [64]
    assert error(outputs(tiny_bert), outputs(smaller)) <= LARGEST


@pytest.mark.parametrize("name", ["struct", "joint", "gates"])
def test_where_all_is_masked_nothing_of_it_is_left(tiny_bert: Model, name: str) -> None:
    work = attached(tiny_bert, PRESETS[name])
    for each in work.scores:
        each.values.data.fill_(-9.0)
        each.cut = 0.0
    with Rewriter(tiny_bert, Context()) as rw:
        work.finish(rw)
    smaller = cut_copy(tiny_bert)
    assert not sizes(smaller, "ffn")
    assert not sizes(smaller, "head")
    assert work.amounts.compact_density([each.mask().numpy() for each in work.scores]) == 0.0
    assert error(outputs(tiny_bert), outputs(smaller)) <= LARGEST


def test_nothing_is_touched_where_everything_gives_something(tiny_bert: Model) -> None:
    smaller = cut_copy(tiny_bert)
    assert smaller.parameters == tiny_bert.parameters


def test_blocks_of_zeros_are_not_stored() -> None:
    model = Model(ir.from_proto(Bert(hidden=64, ffn=128).model()))
    work = attached(model, PRESETS["hybrid"])
    shuffled(work, kept=0.3)
    with Rewriter(model, Context()) as rw:
        work.finish(rw)
    smaller = cut_copy(model)
    names = [site.weight.name for site in work.layout.sites]
    before, stored = outputs(smaller), smaller.weight_bytes
    with Rewriter(smaller, Context()) as rw:
        assert store_sparse(rw, names, 8, 8) == 8
    assert smaller.weight_bytes < 0.8 * stored
    assert error(before, outputs(smaller)) <= LARGEST
    dense = {each.name: np.count_nonzero(each.dense()) for each in linears(smaller)}
    assert dense == {each.name: np.count_nonzero(each.dense()) for each in linears(cut_copy(model))}


def test_what_a_product_reads_stays() -> None:
    model = texts.model_of(texts.GRAM)
    value = model.graph.initializers["down"]
    array = value.const_value.numpy().copy()
    array[:8] = 0
    with Rewriter(model, Context()) as rw:
        rw.overwrite(value, array)
        assert compact(rw) == {}


def test_nodes_that_are_zero_in_every_expert_are_cut_exactly() -> None:
    model = mixture(DENSE)
    before = answers(model, rows(2, 5))
    for name in ("up_weight", "down_weight"):
        for block in range(BLOCKS):
            set_array(model, f"{name}{block}", _without_first_nodes)
    zeroed = answers(model, rows(2, 5))
    with Rewriter(model, Context()) as rw:
        gone = compact(rw)
    assert gone == {"ffn": 5 * BLOCKS}
    assert sizes(model, "ffn") == [HIDDEN - 5] * BLOCKS
    assert np.abs(zeroed - before).max() > 0.01  # what was zeroed did something
    assert error({"y": zeroed}, {"y": answers(model, rows(2, 5))}) <= LARGEST


def _without_first_nodes(stack: np.ndarray) -> None:
    """Five FFN nodes make nothing, or are read by nobody: [experts, in, out] or [experts, out, in]."""
    axis = 2 if stack.shape[2] == HIDDEN else 1
    np.moveaxis(stack, axis, 0)[:5] = 0
