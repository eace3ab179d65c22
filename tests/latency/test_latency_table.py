"""Latencies by block and units: what is timed, what is kept, and what is told from it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_samples

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.cutting.cut import cut
from graphcompress.errors import GraphCompressError, UsageError
from graphcompress.graph.model import Model
from graphcompress.latency import table
from graphcompress.latency.table import check_shapes, latency_table
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.profile import Profile
from graphcompress.measure.timing import Measurement
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


def blocks(model: Model):
    return [group for group in couplings(model) if group.kind in (HEAD, FFN)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def by_parameters(monkeypatch: pytest.MonkeyPatch):
    """Times that are numbers of parameters, and how often anything was timed."""
    taken: list[list[str]] = []

    def times(models, feeds, ctx, rounds):
        taken.append(list(models))
        found = {name: [model.parameters / 1000] for name, model in models.items()}
        return [Measurement(found) for _ in feeds]

    monkeypatch.setattr(table, "timed", times)
    return taken


def given(**changes):
    return {"ctx": Context(samples=random_samples(8)), "measurements": MeasurementCache(), **changes}


def test_a_block_is_timed_at_several_sizes_and_layers_of_one_size_once(tiny_bert, by_parameters):
    found = latency_table(tiny_bert, blocks(tiny_bert), ["1x8", "2x16"], **given())
    steps = ["1", *map(str, range(8, 65, 8))]
    assert by_parameters == [["whole"], ["1", "2", "3", "4"], steps]
    assert len(found.whole_ms) == len(next(iter(found.blocks.values())).ms[0]) == 2
    # A node of width 32 has 32 weights on either side and a bias; the reader has 32 biases, GELU 3 numbers.
    ffn = next(times for group, times in found.blocks.items() if group.kind == FFN)
    np.testing.assert_allclose(ffn.at(24), (24 * 65 + 32 + 3) / 1000)
    np.testing.assert_allclose(ffn.at(20), (20 * 65 + 32 + 3) / 1000)  # between two sizes
    assert not ffn.at(0).any()


def test_shares_of_all_blocks_and_the_rest_are_the_whole(tiny_bert, by_parameters):
    groups = blocks(tiny_bert)
    found = latency_table(tiny_bert, groups, ["1x8"], **given())
    assert found.rest + sum(found.share(group, group.size) for group in groups) == pytest.approx(1.0)
    gone = sum(found.share(group, group.size) - found.share(group, group.size // 2) for group in groups)
    before = tiny_bert.parameters
    with Rewriter(tiny_bert, Context()) as rw:
        cut(rw, {group: np.arange(group.size) < group.size // 2 for group in groups})
    assert gone == pytest.approx(1 - tiny_bert.parameters / before, abs=0.01)


def test_what_was_timed_is_kept_and_a_profile_stands_for_another_machine(tiny_bert, by_parameters):
    first = latency_table(tiny_bert, blocks(tiny_bert), ["1x8"], **given())
    count = len(by_parameters)
    again = latency_table(tiny_bert, first.blocks, ["1x8"], **given())
    assert len(by_parameters) == count
    assert again == first
    cache = MeasurementCache()
    known = Profile({}, [(1, 8)], {key: cache.get(key) for key in cache.keys})
    assert latency_table(tiny_bert, first.blocks, ["1x8"], **given(measurements=known)) == first
    with pytest.raises(UsageError, match="the profile has no latencies of this model at these shapes"):
        latency_table(tiny_bert, first.blocks, ["2x8"], **given(measurements=known))


def test_fewer_units_never_take_longer(tiny_bert, monkeypatch):
    noisy = {"1": 3.0, "2": 1.0, "3": 2.0, "4": 2.5}

    def times(models, feeds, ctx, rounds):
        return [Measurement({name: [noisy.get(name, 9.0)] for name in models}) for _ in feeds]

    monkeypatch.setattr(table, "timed", times)
    heads = blocks(tiny_bert)[:1]
    found = latency_table(tiny_bert, heads, ["1x8"], **given())
    assert [found.share(heads[0], count) * 9 for count in range(5)] == pytest.approx([0, 1, 1, 2, 2.5])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ("8x", "cannot read shape"),
        ("2x500", "does not run at 2x500, .*: it has positions for 64 tokens; name a shape such as 2x64"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(tiny_bert, shape, said):
    with pytest.raises(GraphCompressError, match=said):
        check_shapes(tiny_bert, [shape], Context(samples=random_samples(8)))
