"""kvcache: keys and values in int8, held against the float model whose cache is rounded by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sequence_models import random_texts, saved, text

from graphcompress import verify
from graphcompress.artifact.sequences import source_run
from graphcompress.data.inputs import shapes_in
from graphcompress.data.made_up import varied_samples
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import sequence_samples
from graphcompress.errors import DataError, UsageError
from graphcompress.files.parts import is_cache, is_past, read_parts
from graphcompress.files.runtime import Feed
from graphcompress.graph.float_cache import cache_grids
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.cache import MeasurementCache
from graphcompress.numerics.metrics import ratio_db
from graphcompress.passes.quantize import kvcache
from graphcompress.passes.quantize.kvcache import FLOAT, INT8, KvCache, step_times
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from graphcompress.targets.mobile.mobile import Mobile

LEVELS = 127


def loaded(folder: Path) -> tuple[Model, Samples]:
    """The model in ``folder`` in plain form, and samples of it."""
    model = Model.load(folder)
    Simplify().run(model, Context())
    return model, sequence_samples(model, random_texts(folder.name.partition(",")[0], 4))


def rounded(model: Model, samples: Samples) -> Record:
    """Round the cache of ``model``; nothing is timed."""
    return KvCache(measure=False).run(model, Context(samples=samples))


def feeds_of(samples: Samples) -> list[Feed]:
    return [samples.batch([index]) for index in range(len(samples))]


def peaks(model: Model, feeds: list[Feed]) -> dict[str, np.ndarray]:
    """Which keys or values of which layer → the largest number of each head."""
    found: dict[str, np.ndarray] = {}
    with Runner(model) as runner:
        for outputs in map(runner, feeds):
            for name in filter(is_cache, outputs):
                peak = np.abs(outputs[name]).max((0, 2, 3), initial=0)
                found[slot(name)] = np.maximum(found.get(slot(name), peak), peak)
    return found


def slot(name: str) -> str:
    return name[name.index(".") :]


def by_hand(array: np.ndarray, scale: np.ndarray) -> np.ndarray:
    along = scale[:, None, None]
    return np.clip(np.rint(array / along), -LEVELS, LEVELS).astype(np.float32) * along


class ByHand:
    """The float files of a folder, with operators of floats that round what comes into the cache."""

    def __init__(self, folder: Path, scales: Mapping[str, np.ndarray], made: Path) -> None:
        self._scales = scales
        made.mkdir()
        for file in folder.glob("*.onnx"):
            proto = onnx.load(file)
            for value in [value.name for value in proto.graph.output if is_cache(value.name)]:
                self._round(proto.graph, value)
            onnx.save(proto, made / file.name)
        self._run = source_run(made)

    def __call__(self, feed: Feed) -> Mapping[str, np.ndarray]:
        given = {
            name: by_hand(array, self._scales[slot(name)]) if is_past(name) else array
            for name, array in feed.items()
        }
        return self._run(given)

    def _round(self, graph: onnx.GraphProto, present: str) -> None:
        """Round what the Concat behind ``present`` appends; without one, what is returned."""
        node = next(node for node in graph.node if present in node.output)
        place, source, result = list(graph.node).index(node), f"{present}/exact", present
        if node.op_type == "Concat" and len(node.input) == 2:
            source, result = node.input[1], f"{present}/new"
            node.input[1] = result
        else:
            place += 1
            for other in graph.node:
                other.input[:] = [source if name == present else name for name in other.input]
                other.output[:] = [source if name == present else name for name in other.output]
        scale = numpy_helper.from_array(self._scales[slot(present)][:, None, None], f"{present}/scale")
        ends = [numpy_helper.from_array(np.float32(end), f"{present}/{end}") for end in (-LEVELS, LEVELS)]
        graph.initializer.extend([scale, *ends])
        made = [
            helper.make_node("Div", [source, scale.name], [f"{present}/steps"]),
            helper.make_node("Round", [f"{present}/steps"], [f"{present}/whole"]),
            helper.make_node("Clip", [f"{present}/whole", *(end.name for end in ends)], [f"{present}/cut"]),
            helper.make_node("Mul", [f"{present}/cut", scale.name], [result]),
        ]
        for offset, new in enumerate(made):
            graph.node.insert(place + offset, new)


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    return ratio_db(float((expected**2).sum()), float(((expected - found) ** 2).sum()))


@pytest.mark.parametrize("name", ["llama", "marian", "whisper"])
def test_an_int8_cache_says_what_a_float_cache_rounded_by_hand_says(name, sequence_folders, tmp_path):
    model, samples = loaded(sequence_folders[name])
    feeds = feeds_of(samples)
    scales = {one: peak / LEVELS for one, peak in peaks(model, feeds).items()}
    hand = ByHand(sequence_folders[name], scales, tmp_path / "hand")
    rounded(model, samples)
    with Runner(model) as runner:
        for feed in feeds:
            expected, found = hand(feed), runner(feed)
            assert expected.keys() == found.keys()
            assert min(sqnr(expected[output], found[output]) for output in expected) > 90


@pytest.mark.parametrize("name", ["gpt2", "t5, merged"])
def test_what_is_written_with_an_int8_cache_is_what_was_written(name, sequence_folders, tmp_path):
    folder = sequence_folders[name]
    model, samples = loaded(folder)
    record = rounded(model, samples)
    made = saved(model, tmp_path / "made")
    assert not record.skipped
    assert np.mean(text(name, made) == text(name, folder)) >= 0.9
    given = [value for part in read_parts(made) for value in part.reads("past")]
    assert {value.dtype.name for value in given} == {"int8"}


def test_a_cache_is_a_quarter_as_large(sequence_folders):
    model, samples = loaded(sequence_folders["llama"])
    record = rounded(model, samples)
    inputs = [value for value in model.graph.inputs if is_past(value.name or "")]
    assert len(record.touched) == len(inputs) == 4
    types = shapes_in(feeds_of(samples)[0], model)
    # What a caller makes, whatever samples hold.
    assert {types[value.name][0] for value in inputs} == {"int8"}
    each = sum(value.dtype.numpy().itemsize * value.shape[1] * value.shape[3] for value in inputs)
    assert f"keys and values of a token take {each} bytes instead of {4 * each}" in record.notes


@pytest.mark.parametrize(("before", "ms", "faster"), [(10.0, 10.2, True), (0.30, 0.34, False)])
def test_a_cache_stays_in_float_where_int8_is_slower(
    before, ms, faster, sequence_folders, tmp_path, monkeypatch
):
    times = {FLOAT: [before], INT8: [ms]}
    monkeypatch.setattr(kvcache, "step_times", lambda models, length, ctx: times)
    model, samples = loaded(sequence_folders["gpt2"])
    step = KvCache(length=70)
    (record,) = Pipeline([step]).run(model, Context(samples=samples))
    # There are 64 positions, of which the step takes one.
    assert record.notes[0].startswith(
        f"a step after 63 tokens takes {ms:.2f} ms with the {INT8}, {before:.2f} ms"
    )
    assert {item.reason for item in record.skipped} == (
        set() if faster else {"in int8 it would make a step slower"}
    )
    dtypes = {str(value.dtype) for value in model.graph.inputs if is_past(value.name or "")}
    assert dtypes == {"INT8" if faster else "FLOAT"}
    # What was decided is made again elsewhere, without a measurement.
    monkeypatch.setattr(kvcache, "step_times", None)
    again, _ = loaded(sequence_folders["gpt2"])
    pinned = step.run(again, Context(samples=samples, pinned={str(step): record.plan}))
    assert (pinned.notes, len(pinned.touched)) == (record.notes, len(record.touched))
    with pytest.raises(DataError, match=r"\[pinned\] in the recipe is of another version"):
        step.run(loaded(sequence_folders["gpt2"])[0], Context(samples=samples, pinned={str(step): "{}"}))


def test_options_say_what_is_timed_and_how_many_samples_calibrate(sequence_folders, monkeypatch):
    """A second text can only make ranges larger, and other texts do."""
    lengths, widest = [], []

    def same(models: Mapping[str, Model], length: int, ctx: Context) -> dict[str, list[float]]:
        lengths.append(length)
        return {FLOAT: [1.0], INT8: [1.0]}

    monkeypatch.setattr(kvcache, "step_times", same)
    for step in (KvCache(length=7, samples=1), KvCache(length=9), KvCache(measure=False)):
        model, samples = loaded(sequence_folders["gpt2"])
        step.run(model, Context(samples=samples))
        widest.append(sum(float(grid.scale.sum()) for grid in cache_grids(model.graph).values()))
    assert lengths == [7, 9]
    assert widest[0] < widest[1] == widest[2]


def test_the_first_process_decides_for_all(sequence_folders, monkeypatch):
    """Others measure other times, and would go on with another model."""
    sent = []

    class Group:
        def __init__(self):
            self.rank = len(sent)

        def from_first(self, value):
            sent.append(value)
            return sent[0]

    pytest.importorskip("torch")
    monkeypatch.setattr(kvcache, "processes", lambda: 2)
    monkeypatch.setattr("graphcompress.training.group.ProcessGroup", Group)
    dtypes = []
    for ms in (2.0, 0.5):
        monkeypatch.setattr(
            kvcache, "step_times", lambda models, length, ctx, ms=ms: {FLOAT: [1.0], INT8: [ms]}
        )
        model, samples = loaded(sequence_folders["gpt2"])
        KvCache().run(model, Context(samples=samples))
        dtypes.append({str(value.dtype) for value in model.graph.inputs if is_past(value.name or "")})
    assert dtypes == [{"FLOAT"}, {"FLOAT"}]


def test_both_are_timed_once_and_kept(sequence_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(kvcache, "ROUNDS", 1)
    monkeypatch.setattr(kvcache, "REPETITIONS", 1)
    model, samples = loaded(sequence_folders["marian"])
    twin = model.clone()
    rounded(twin, samples)
    kept = MeasurementCache(tmp_path)
    ctx = Context(measurements=kept)
    times = step_times({FLOAT: model, INT8: twin}, 6, ctx)
    assert times.keys() == {FLOAT, INT8}
    assert step_times({FLOAT: model, INT8: twin}, 6, ctx) == times
    assert len(kept.keys) == 1


def test_states_that_are_computed_anew_stay(tmp_path):
    model = Model.load(recurrent(tmp_path))
    record = rounded(model, varied_samples(model))
    assert [item.reason for item in record.skipped] == [
        "it is a state that every step computes anew: nothing is appended to what was there"
    ]
    assert record.notes == ("there are no keys and values of earlier tokens that could be rounded",)


def test_one_part_alone_is_no_model_that_writes(sequence_folders):
    model = Model.load(sequence_folders["marian"] / "decoder_with_past_model.onnx")
    record = rounded(model, varied_samples(model))
    assert record.notes[0].endswith("give the folder with all parts of the model, if this is one of them")


def recurrent(folder: Path) -> Path:
    """A decoder that keeps a sum of what it has read: [batch, 4]."""
    table = numpy_helper.from_array(np.eye(8, 4, dtype=np.float32), "table")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["read"]),
        helper.make_node("ReduceSum", ["read", "axes"], ["new"], keepdims=0),
        helper.make_node("Add", ["past_key_values.0.key", "new"], ["present.0.key"]),
        helper.make_node("Unsqueeze", ["present.0.key", "axes"], ["logits"]),
    ]
    f32, i64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "sum",
        [
            helper.make_tensor_value_info("input_ids", i64, ["batch", "length"]),
            helper.make_tensor_value_info("past_key_values.0.key", f32, ["batch", 4]),
        ],
        [
            helper.make_tensor_value_info("logits", f32, ["batch", 1, 4]),
            helper.make_tensor_value_info("present.0.key", f32, ["batch", 4]),
        ],
        [table, numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("order", "axis"), [((0, 2, 1, 3), 1), ((0, 2, 3, 1), 1), ((0, 1, 2, 3), 2)], ids=["bhtd", "bhdt", "bthd"]
)
def test_heads_are_found_in_every_layout(order, axis, tmp_path):
    model = Model.load(summed(order, tmp_path))
    ids = np.array([[1, 2, 3]])
    none = np.zeros([(1, 0, 2, 3)[place] for place in order], np.float32)
    table = model.graph.initializers["table"].const_value.numpy().reshape(8, 2, 3)
    samples = Samples([{"input_ids": ids[0], "past_key_values.0.key": none[0]}])
    rounded(model, samples)
    scales = cache_grids(model.graph)["past_key_values.0.key"]
    assert scales.axis == axis
    np.testing.assert_allclose(scales.scale, np.abs(table[ids[0]]).max((0, 2)) / LEVELS, rtol=1e-6)
    with Runner(model) as runner:
        found = runner({"input_ids": ids, "past_key_values.0.key": none})
    keys = table[ids]
    expected = np.rint(keys / scales.scale[:, None]) * scales.scale[:, None]
    np.testing.assert_allclose(found["present.0.key"], expected.transpose(order), rtol=1e-6)
    np.testing.assert_allclose(found["logits"], expected.sum(1).reshape(1, 1, 6), rtol=1e-5)


def summed(order: tuple[int, ...], folder: Path) -> Path:
    """A decoder whose scores are the sum of its keys; ``order`` is that of batch, tokens, heads and size."""
    rng = np.random.default_rng(0)
    back = [order.index(axis) for axis in range(4)]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["read"]),
        helper.make_node("Reshape", ["read", "heads"], ["keys"]),
        helper.make_node("Transpose", ["keys"], ["new"], perm=order),
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=order.index(1)),
        helper.make_node("Transpose", ["present.0.key"], ["all"], perm=back),
        helper.make_node("ReduceSum", ["all", "tokens"], ["sum"]),
        helper.make_node("Reshape", ["sum", "flat"], ["logits"]),
    ]
    named = [helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "length"])]
    for name, length in (("past_key_values.0.key", "past"), ("present.0.key", "past + length")):
        shape = [("batch", length, 2, 3)[place] for place in order]
        named.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 1, 6])
    stored = {
        "table": rng.standard_normal((8, 6)).astype(np.float32),
        "heads": np.array([0, 0, 2, 3]),
        "tokens": np.array([1]),
        "flat": np.array([0, 1, 6]),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "sum", named[:2], [logits, named[2]], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def test_heads_that_go_later_take_their_scales_along(sequence_folders):
    """Heads that are cut from a rounded cache are those that are rounded after the cut."""
    found = []
    for order in (
        "kvcache{measure=false},prune{heads=0.5 refit=false}",
        "prune{heads=0.5 refit=false},kvcache{measure=false}",
    ):
        model, samples = loaded(sequence_folders["llama"])
        Pipeline.parse(order).run(model, Context(samples=samples), allow=["prune"])
        grids = [grid for name, grid in cache_grids(model.graph).items() if is_past(name)]
        assert {grid.scale.shape for grid in grids} == {(2,)}
        with Runner(model) as runner:
            found.append([runner(feed)["logits"] for feed in feeds_of(samples)])
    assert min(map(sqnr, *found)) > 25


def test_verify_gives_both_models_a_past_in_floats(sequence_folders, tmp_path):
    folder = sequence_folders["llama"]
    model, samples = loaded(folder)
    rounded(model, samples)
    found = verify(folder, saved(model, tmp_path / "made"), data=samples)
    assert found.difference.sqnr_db > 30
    assert {output.name for output in found.difference.outputs} == {
        value.name for value in model.graph.outputs
    }
    assert found.own_cache is not None
    assert found.own_cache.divergence < 1e-3


def test_a_target_whose_loaders_make_caches_in_floats_is_refused():
    with pytest.raises(UsageError, match="cannot run what kvcache asks for: a cache in int8"):
        Pipeline([KvCache()]).check_target("mobile", Mobile().capabilities, calibrated=True)


def test_no_weight_has_to_be_covered(sequence_folders):
    model, samples = loaded(sequence_folders["llama"])
    step = KvCache(measure=False)
    (record,) = Pipeline([step]).run(model, Context(samples=samples), require_coverage=0.5)
    assert (record.coverage, record.skipped) == (0.0, ())
