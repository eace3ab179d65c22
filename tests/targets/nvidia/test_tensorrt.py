import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from graphs_int8 import HIDDEN, ROWS, WIDTH, Maker, floats, kronecker, network, saved, smoothed_kronecker

from graphcompress.data.load import Samples
from graphcompress.errors import MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.graph.runtime import Runner
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.base import Context
from graphcompress.plugin.schemes import INT8, integer_products
from graphcompress.plugin.targeting import parse_target
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.nvidia import tensorrt
from graphcompress.targets.nvidia.dequantised_tables import dequantise_before_lookup
from graphcompress.targets.nvidia.engine_profile import profile_shapes
from graphcompress.targets.nvidia.engines import builder, execute, worker
from graphcompress.targets.nvidia.engines.builder import build_engine, is_installed
from graphcompress.targets.nvidia.engines.log import int8_products, layers_in
from graphcompress.targets.nvidia.float16 import to_half
from graphcompress.targets.nvidia.refusals import refusals
from graphcompress.targets.nvidia.strongly_typed import strongly_typed

rtx = pytest.mark.skipif(
    not is_installed(builder.RTX),
    reason="tensorrt_rtx is not installed: pip install 'graphcompress[tensorrt-rtx]'",
)


def ids(count=6, length=9):
    rng = np.random.default_rng(1)
    return Samples([{"ids": rng.integers(0, ROWS, length)} for _ in range(count)])


def activations(width, count=6, length=9):
    rng = np.random.default_rng(1)
    return Samples([{"x": rng.standard_normal((length, width)).astype(np.float32)} for _ in range(count)])


def outputs(model, samples):
    with Runner(model, optimize=False) as run:  # int8 products of this machine may saturate
        return run(samples.batch(range(len(samples))))["y"]


def kept_db(source, lowered, samples):
    return sqnr_db(outputs(source, samples), outputs(lowered, samples))


# ---- the graph


def test_the_graph_is_half_around_symmetric_int8(tmp_path):
    model, samples = network(tmp_path), ids()
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.model.opset == 19
    assert typed.int8_products == ("n_wide.product", "n_narrow.product")
    kinds = {value.dtype.name for node in typed.model.graph for value in node.outputs if value.dtype}
    assert kinds <= {"FLOAT16", "INT8", "FLOAT"}
    assert [v.dtype.name for v in typed.model.graph.outputs] == ["FLOAT"]
    floats_left = [n.op_type for n in typed.model.graph for v in n.outputs if v.dtype.name == "FLOAT"]
    assert floats_left == ["Cast"]
    assert kept_db(model, typed.model, samples) > 35


def test_an_int8_table_is_read_by_a_dequantize_linear_alone(tmp_path):
    typed = strongly_typed(network(tmp_path), Context(ids()), half=True)
    table = next(v for v in typed.model.graph.initializers.values() if list(v.shape) == [ROWS, WIDTH])
    assert [node.op_type for node in table.consumers()] == ["DequantizeLinear"]


def test_the_model_that_is_lowered_stays_as_it_is(tmp_path):
    model = network(tmp_path)
    before = [(node.op_type, node.name) for node in model.graph]
    strongly_typed(model, Context(ids()), half=True)
    assert [(node.op_type, node.name) for node in model.graph] == before
    assert model.opset == 18


def test_float32_keeps_the_numbers(tmp_path):
    model, samples = network(tmp_path), ids()
    typed = strongly_typed(model, Context(samples), half=False)
    assert kept_db(model, typed.model, samples) > 100


# ---- Kronecker weights


FACTORED = [
    ((16, 16, 16, 32), 1),
    ((16, 32, 32, 16), 1),
    ((128, 1, 1, 128), 16),
    ((2, 8, 64, 64), 1),  # a small factor on the left: pieces of every row
    ((8, 2, 64, 64), 1),
    ((64, 64, 2, 2), 1),  # both exchanged around the large one
    ((64, 1, 2, 128), 16),
    ((128, 32, 1, 4), 2),
    ((128, 1, 1, 128), 4),  # fewer terms than a tensor core multiplies
]


@pytest.mark.parametrize(("sizes", "rank"), FACTORED)
def test_a_kronecker_weight_is_two_int8_products(tmp_path, sizes, rank):
    model = kronecker(tmp_path, sizes, rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert len(typed.int8_products) == 2
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert kept_db(model, typed.model, samples) > 12
    assert "two int8 products each, which keep at least" in typed.notes[0]


@pytest.mark.parametrize(("sizes", "rank", "scalings"), [((16, 16, 16, 16), 1, 2), ((64, 1, 1, 64), 16, 1)])
def test_what_smoothing_moved_is_in_a_factor_or_taken_back(tmp_path, sizes, rank, scalings):
    model = smoothed_kronecker(tmp_path, gain_takes_it=True, sizes=sizes, rank=rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert len(typed.int8_products) == 2
    assert sum(node.op_type == "Mul" for node in typed.model.graph) == scalings
    assert kept_db(model, typed.model, samples) > 12


@pytest.mark.parametrize(("sizes", "rank", "scalings"), [((16, 16, 16, 16), 1, 0), ((64, 1, 1, 64), 16, 1)])
def test_a_factor_takes_what_smoothing_moved_wherever_one_can(tmp_path, sizes, rank, scalings):
    model = smoothed_kronecker(tmp_path, gain_takes_it=False, sizes=sizes, rank=rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert sum(node.op_type == "Mul" for node in typed.model.graph) == scalings
    assert kept_db(model, typed.model, samples) > 12


def test_a_few_huge_tokens_do_not_speak_for_the_others(tmp_path):
    model = kronecker(tmp_path, (128, 1, 1, 128), 16)
    rows = np.random.default_rng(1).standard_normal((6, 9, 128)).astype(np.float32)
    rows[:, 0] *= 300
    with Rewriter(model, Context()) as rw:
        rw.overwrite(model.graph.initializers["x.scale"], np.array(10, np.float32))
    typed = strongly_typed(model, Context(Samples([{"x": sample} for sample in rows])), half=True)
    assert typed.record["kronecker_two_int8_products"] == []
    assert "two products would keep" in typed.record["kronecker_expanded"]["y"]


def test_the_first_of_two_products_rounds_as_the_one_did(tmp_path):
    model = kronecker(tmp_path, (128, 1, 1, 128), 16)
    with Rewriter(model, Context()) as rw:
        rw.overwrite(model.graph.initializers["x.scale"], np.array(0.04321, np.float32))
    typed = strongly_typed(model, Context(activations(128)), half=False)
    rounded = next(node for node in typed.model.graph if node.op_type == "QuantizeLinear")
    assert typed.record["kronecker_two_int8_products"] == ["y"]
    assert rounded.inputs[1].const_value.numpy() == np.float32(0.04321)


@pytest.mark.parametrize(
    ("sizes", "rank", "reason"),
    [((8, 1, 1, 64), 4, "below 16"), ((32, 1, 1, 32), 32, "as many operations")],
)
def test_other_kronecker_weights_are_expanded_and_say_why(tmp_path, sizes, rank, reason):
    model = kronecker(tmp_path, sizes, rank)
    samples = activations(sizes[0] * sizes[2])
    typed = strongly_typed(model, Context(samples), half=True)
    assert len(typed.int8_products) == 1
    assert reason in typed.record["kronecker_expanded"]["y"]
    assert kept_db(model, typed.model, samples) > 35


# ---- refusals


@pytest.mark.parametrize("wide", [0, 1])
def test_products_of_one_activation_stay_int8_when_one_is_beyond_float16(tmp_path, wide):
    make = Maker()
    x = make.rounded("x")
    outs = [make.linear(x, WIDTH, WIDTH, f"linear{index}") for index in range(2)]
    large = f"{outs[wide]}.s"
    place = next(index for index, it in enumerate(make.constants) if it.name == large)
    make.constants[place] = onnx.numpy_helper.from_array(np.full(WIDTH, 60.0, np.float32), large)
    model = saved(make.model([floats("x", WIDTH)], [floats(it, WIDTH) for it in outs]), tmp_path)
    typed = strongly_typed(model, Context(), half=True)
    assert typed.record["values_beyond_float16"]
    assert len(typed.int8_products) == 2


def test_what_tensorrt_accepts_is_not_refused(tmp_path):
    assert not list(refusals(strongly_typed(network(tmp_path), Context(ids()), half=True).model))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"zero": 3}, "its zero point is not zero"),
        ({"dtype": np.uint8}, "UINT8 is not supported"),
        ({"axis": 0}, "axis 0, which is summed over"),
    ],
)
def test_refusals_name_the_node_and_what_to_do(tmp_path, change, reason):
    with pytest.raises(UnsupportedModelError, match="TensorRT refuses node 'n_") as caught:
        strongly_typed(network(tmp_path, **change), Context(ids()), half=True)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("transposed", "axis", "refused"), [(1, 0, 0), (1, 1, 1), (0, 1, 0), (0, 0, 1)])
def test_a_gemm_has_its_scales_on_the_axis_of_its_outputs(tmp_path, transposed, axis, refused):
    make = Maker()
    weight = make.constant("w", make.rng.integers(-127, 128, (32, 32)).astype(np.int8))
    scale = make.constant("s", np.full(32, 0.01, np.float32))
    zero = make.constant("z", np.zeros(32, np.int8))
    dequantised = make.node("DequantizeLinear", weight, scale, zero, out="dq", axis=axis)
    make.node("Gemm", make.rounded("x"), dequantised, out="y", transB=transposed)
    matrix = onnx.helper.make_tensor_value_info
    x, y = (matrix(name, onnx.TensorProto.FLOAT, ["batch", 32]) for name in "xy")
    assert len(list(refusals(saved(make.model([x], [y]), tmp_path)))) == refused


def test_a_product_that_is_no_int8_gemm_is_named(tmp_path):
    make = Maker()
    make.linear(make.rounded("x"), WIDTH, WIDTH, "first")
    make.linear("first", WIDTH, WIDTH, "y")
    model = saved(make.model([floats("x", WIDTH)], [floats("y", WIDTH)]), tmp_path)
    typed = strongly_typed(model, Context(activations(WIDTH)), half=True)
    assert typed.int8_products == ("n_first.product",)
    assert typed.record["products_left_in_float"] == ["n_y.product"]
    assert "computed in float" in typed.notes[0]


def test_an_operator_for_dynamic_scales_is_refused(tmp_path):
    make = Maker()
    weight = make.constant("w", make.rng.integers(-9, 9, (32, 32)).astype(np.int8))
    make.nodes.append(onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    make.node("MatMulInteger", "q", weight, "z", out="i")
    make.node("Cast", "i", out="f", to=1)
    make.node("Mul", "f", "s", out="y")
    model = saved(make.model([floats("x", 32)], [floats("y", 32)]), tmp_path)
    assert [it.node for it in refusals(model)] == ["dynamic", "n_i"]
    assert "scheme=static" in str(next(refusals(model)))


# ---- the log


LOG = (
    "Layers:\n"
    "Name: n_b+n_a_myl0_3, LayerType: gemm, Inputs: [ { Name: q, Dimensions: [-1,8], Datatype: Int8, Format: "
    "(Linear) Row major linear format }], Constants: [ { Name: c, Dimensions: [8,8], Datatype: Int8, Format: "
    "(Linear) }, { Name: alpha, Dimensions: [1], Datatype: Float }], Outputs: [ { Name: o, Datatype: Half }],"
    " TacticName: t, StreamId: 0, Metadata: [ONNX Layer: n_b][ONNX Layer: dq][ONNX Layer: n_a]\n"
    "Name: n_c_myl0_4, LayerType: gemm, Inputs: [ { Name: o, Datatype: Half }], Constants: [ { Name: d, "
    "Datatype: Half }], Outputs: [ { Name: p, Datatype: Half }], TacticName: t, StreamId: 0, Metadata: "
    "[ONNX Layer: n_c]\n"
    "Name: __myl_Add, LayerType: kgen, Inputs: [ { Name: p, Datatype: Half }], Constants: [], Outputs: "
    "[ { Name: y, Datatype: Half }], TacticName: u, StreamId: 0, Metadata: [ONNX Layer: n_add]\n"
)


def test_layers_are_read_from_the_log():
    layers = layers_in(LOG.splitlines())
    assert [layer.kind for layer in layers] == ["gemm", "gemm", "kgen"]
    assert layers[0].operands == ("Int8", "Int8", "Float")
    assert layers[0].nodes == ("n_b", "dq", "n_a")
    assert str(layers[2]) == "kgen __myl_Add: Half -> Half"


def test_a_fusion_that_turns_int8_into_float16_is_no_int8_product():
    line = (
        "Name: __myl_CastMulCastFc_myl0_2, LayerType: runtime_fusion, Inputs: [ { Datatype: Int8 }], "
        "Constants: [ { Datatype: Half }, { Datatype: Int8 }], Outputs: [ { Datatype: Half }], "
        "TacticName: , StreamId: 0, Metadata: [ONNX Layer: n_a]"
    )
    assert int8_products(layers_in([line]), ["n_a"]) == []


KERNEL = "sm80_xmma_gemm_{}_tn_n_tilesize64x64x64_stage4_tensor16x8x32"


@pytest.mark.parametrize("kind", ["gemm", "fusion"])
@pytest.mark.parametrize(
    ("kernel", "found"),
    [("i8i8_i8i32_f32", ["n_a"]), ("i8f32_i8i32_f32", ["n_a"]), ("f16f16_f16f32_f32", [])],
)
def test_the_whole_of_tensorrt_names_the_kernel_and_lists_no_constants(kind, kernel, found):
    line = (
        f"Name: __myl_Fc_myl0_2, LayerType: {kind}, Inputs: [ {{ Name: q, Dimensions: [8,8], "
        "Format/Datatype: Int8 }], Outputs: [ { Name: o, Format/Datatype: Half }], TacticName: "
        f"{KERNEL.format(kernel)}, StreamId: 0, Metadata: [ONNX Layer: n_a]"
    )
    assert int8_products(layers_in([line]), ["n_a"]) == found


def test_one_layer_may_multiply_for_several_nodes():
    assert int8_products(layers_in(LOG.splitlines()), ["n_a", "n_b", "n_c"]) == ["n_a", "n_b"]


# ---- engines


def answers(module, result, log=LOG, code=0, stderr=b""):
    def run(command, **_):
        asked = json.loads(Path(command[-1]).read_text())
        assert asked["module"] == module
        Path(asked["log"]).write_text(log)
        if result is not None:
            Path(asked["result"]).write_text(json.dumps(result))
        return builder.subprocess.CompletedProcess(command, code, b"", stderr)

    return run


def built(tmp_path, expected, **options):
    return build_engine(
        tmp_path / "m.onnx",
        tmp_path / "m.engine",
        compute="SM86",
        expected=expected,
        shapes={},
        timeout_s=9,
        **options,
    )


def test_every_int8_product_is_required(tmp_path, monkeypatch):
    monkeypatch.setattr(builder.subprocess, "run", answers(builder.RTX, {"version": "1", "refused": []}))
    assert built(tmp_path, ["n_a", "n_b"]).int8 == ("n_a", "n_b")
    with pytest.raises(UnsupportedModelError, match=r"2 of 3 Int8 products \(n_c: gemm"):
        built(tmp_path, ["n_a", "n_b", "n_c"])


class FakeCompiler:
    """As much of the whole of TensorRT as a build takes; its log is silent, its inspector is not."""

    __version__ = "10.0"
    layers = "Layers:\nName: n, LayerType: fusion, Inputs: [ { Format/Datatype: Int8 }], Outputs: [], "
    layers += f"TacticName: {KERNEL.format('i8i8_i8i32_f32')}, StreamId: 0, Metadata: [ONNX Layer: n_a]"

    class ILogger:
        pass

    class NetworkDefinitionCreationFlag:
        STRONGLY_TYPED = 1

    class ProfilingVerbosity:
        DETAILED = 2

    class LayerInformationFormat:
        ONELINE = 0

    class Builder:
        def __init__(self, logger):
            pass

        def create_network(self, flags):
            assert flags == 2
            return "network"

        create_builder_config = create_optimization_profile = SimpleNamespace

        def build_serialized_network(self, network, config):
            assert config.profiling_verbosity == 2
            return b"engine"

    class OnnxParser:
        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            return True

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, data):
            assert data == b"engine"
            return self

        def create_engine_inspector(self):
            return self

        def get_engine_information(self, form):
            return FakeCompiler.layers


def test_the_whole_of_tensorrt_is_asked_for_the_layers_of_its_engine(tmp_path, monkeypatch):
    def run(command, **_):
        worker.main(Path(command[-1]))
        return builder.subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(builder.subprocess, "run", run)
    monkeypatch.setattr(worker.importlib, "import_module", lambda name: FakeCompiler)
    engine = built(tmp_path, ["n_a"], module=builder.FULL)
    assert engine.int8 == ("n_a",)
    assert [layer.kind for layer in engine.layers] == ["fusion"]
    assert engine.file.read_bytes() == b"engine"


def test_a_refusal_and_a_sudden_end_are_errors(tmp_path, monkeypatch):
    refused = {"version": "1", "refused": ["node 'n_a' (Foo): not supported"]}
    monkeypatch.setattr(builder.subprocess, "run", answers(builder.RTX, refused))
    with pytest.raises(UnsupportedModelError, match="refuses the graph for SM86: node 'n_a'"):
        built(tmp_path, [])
    monkeypatch.setattr(builder.subprocess, "run", answers(builder.RTX, None, "Parsing n_x\n", -11))
    with pytest.raises(UnsupportedModelError, match=r"ended while it compiled for SM86 \(last: Parsing n_x"):
        built(tmp_path, [])


def test_a_compiler_that_cannot_be_run_says_why(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"ModuleNotFoundError: .*no_such_module") as caught:
        built(tmp_path, [], module="no_such_module")
    assert "exit code 1" in str(caught.value)
    assert "elementary" not in str(caught.value)


def test_requiring_engines_is_refused_where_the_whole_of_tensorrt_has_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "is_installed", lambda name: name == builder.FULL)
    monkeypatch.setattr(tensorrt, "is_installed", lambda name: name == builder.FULL)
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: None)
    target = parse_target("tensorrt{build=require}")
    with pytest.raises(MissingExtraError, match="or TensorRT and a GPU"):
        target.check()
    with pytest.raises(MissingExtraError, match="or TensorRT and a GPU"):
        target.lower(network(tmp_path), tmp_path, Context(ids()))
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: "SM89")
    target.check()


def test_a_folder_with_the_name_of_the_module_is_not_the_module(tmp_path, monkeypatch):
    (tmp_path / "some_compiler").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("some_compiler")
    (tmp_path / "some_compiler" / "__init__.py").touch()
    assert is_installed("some_compiler")


@pytest.mark.parametrize(
    ("compute", "installed", "module"),
    [
        ("SM90", [builder.RTX], None),
        ("SM89", [builder.RTX], builder.RTX),
        ("SM90", [builder.RTX, builder.FULL], builder.FULL),
    ],
)
def test_a_gpu_is_compiled_for_by_what_knows_it(tmp_path, monkeypatch, compute, installed, module):
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: compute)
    monkeypatch.setattr(tensorrt, "is_installed", installed.__contains__)
    assert parse_target("tensorrt").timed == (module is not None)
    jobs = []

    def record(graph, engine, *, compute, module, **_):
        jobs.append((compute, module))
        engine.write_bytes(b"e" * (5 - len(jobs)))
        return builder.Engine(engine, compute, module, "1", (), (), (), 0.0)

    monkeypatch.setattr(tensorrt, "build_engine", record)
    about = parse_target("tensorrt{compute=86}").lower(network(tmp_path), tmp_path, Context(ids())).record
    assert about["deployed_bytes"] == 4, "a device gets one engine, the largest of them at most"
    assert jobs == [("SM86", builder.RTX), *([(compute, module)] if module else [])]


def test_an_engine_is_loaded_by_what_built_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: "SM89")
    monkeypatch.setattr(tensorrt, "is_installed", lambda module: True)
    monkeypatch.setattr(tensorrt, "engine_runner", lambda module, engine: (module, engine.name))
    (tmp_path / "model-sm89.engine").write_bytes(b"engine")
    for module in (builder.RTX, builder.FULL):
        record = {"engines": {"SM89": {"compiler": f"{module} 1.2"}}}
        (tmp_path / "build.json").write_text(json.dumps(record))
        assert parse_target("tensorrt").session(tmp_path) == (module, "model-sm89.engine")


@pytest.mark.parametrize("target", ["tensorrt", "gpu"])
@pytest.mark.parametrize(
    "options", ["opt=1y128", "largest=8by512", "opt=8x16 largest=4x512", 'opt="batch=9" largest="batch=8"']
)
def test_sizes_of_the_profile_are_refused_at_once(target, options):
    with pytest.raises(UsageError, match=f"{target}(: opt=|: largest=|{{opt=)"):
        parse_target(f"{target}{{{options}}}")


def test_a_build_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    def slow(command, timeout, **_):
        raise builder.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(builder.subprocess, "run", slow)
    with pytest.raises(UnsupportedModelError, match="within 9 s"):
        built(tmp_path, [])


def test_without_the_package_the_graph_is_written_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(builder.importlib.util, "find_spec", lambda name: None)
    target = parse_target("tensorrt")
    record = target.lower(network(tmp_path), tmp_path, Context(ids())).record
    assert record["proof"].startswith("not compiled (pip install 'graphcompress[tensorrt-rtx]')")
    assert record["engines"] == []
    assert not target.timed
    with pytest.raises(MissingExtraError, match="tensorrt-rtx"):
        parse_target("tensorrt{build=require}").check()


def test_options():
    assert parse_target("tensorrt{compute=86+sm89}").capabilities_wanted == ["86", "89"]
    with pytest.raises(UsageError, match="compute=90"):
        parse_target("tensorrt{compute=90}")
    assert parse_target("tensorrt").capabilities.schemes == integer_products(INT8)


def test_shapes_of_the_profile(tmp_path):
    model = network(tmp_path)
    shapes = profile_shapes(model, "2x8", "4x16")
    assert shapes == {"ids": [[1, 1], [2, 8], [4, 16]]}


@rtx
def test_engines_are_really_built_with_every_int8_product(tmp_path):
    model, samples = network(tmp_path), ids()
    target = parse_target("tensorrt{compute=86 build=require opt=1x16 largest=2x32}")
    record = target.lower(model, tmp_path, Context(samples)).record
    assert record["int8_products_expected"] == 2
    assert [it["int8_products"] for it in record["engines"]] == [2]
    assert (tmp_path / "model-sm86.engine").stat().st_size > WIDTH * HIDDEN
    assert "SM86" in record["proof"]
    assert json.loads((tmp_path / "build.json").read_text())["engines"]["SM86"]["int8_products"]
    feed = samples.batch(range(len(samples)))
    assert sqnr_db(outputs(model, samples), target.session(tmp_path)(feed)["y"]) > 35


@rtx
def test_two_int8_products_of_a_kronecker_weight_are_really_built(tmp_path):
    model = kronecker(tmp_path)
    target = parse_target("tensorrt{compute=89 build=require opt=1x16 largest=2x32}")
    record = target.lower(model, tmp_path, Context(activations(256))).record
    assert [it["int8_products"] for it in record["engines"]] == [2]


def strongly_typed_without_refusals(folder):
    """As a user's own tool might write it: one weight has its scales on the axis that is summed over."""
    model = network(folder, axis=0)
    with Rewriter(model, Context()) as rw:
        dequantise_before_lookup(rw)
        raise_opset(rw, 19)
        to_half(rw)
    return model.save(folder / "wrong.onnx")


@rtx
def test_a_scale_on_the_wrong_axis_is_built_without_int8_and_found(tmp_path):
    model = strongly_typed_without_refusals(tmp_path)
    with pytest.raises(UnsupportedModelError, match="with 1 of 2 Int8 products"):
        build_engine(
            model,
            tmp_path / "m.engine",
            compute="SM86",
            expected=["n_wide.product", "n_narrow.product"],
            shapes={"ids": [[1, 1], [1, 8], [2, 16]]},
            timeout_s=120,
        )


# ---- running


class Memory:
    """A device in this machine's own memory."""

    stream = 7

    def __init__(self):
        self.held = {}

    def upload(self, array):
        return np.array(array)

    def room(self, shape, dtype):
        return np.empty(shape, dtype)

    def address(self, memory):
        self.held[id(memory)] = memory
        return id(memory)

    def download(self, memory):
        return memory


class FakeRuntime:
    """As much of a TensorRT module as running takes; its engine doubles ``x`` [., 2]."""

    __version__ = "0"
    memory = None

    class Logger:
        ERROR = 1

        def __init__(self, level):
            self.level = level

    class TensorIOMode:
        INPUT, OUTPUT = 0, 1

    nptype = staticmethod(lambda kind: np.float32)

    class Runtime:
        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, data):
            return FakeEngine() if data else None


class FakeEngine:
    num_io_tensors = 2

    def get_tensor_name(self, index):
        return ("x", "y")[index]

    def get_tensor_mode(self, name):
        return 0 if name == "x" else 1

    def get_tensor_dtype(self, name):
        return "float"

    def create_execution_context(self):
        return self

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] < 5

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        setattr(self, name, address)

    def execute_async_v3(self, stream):
        held = FakeRuntime.memory.held
        held[self.y][...] = 2 * held[self.x]
        return stream == 7


def test_an_engine_is_run_on_what_the_device_holds(tmp_path, monkeypatch):
    FakeRuntime.memory = Memory()
    monkeypatch.setattr(execute.importlib, "import_module", lambda name: FakeRuntime)
    path = tmp_path / "m.engine"
    path.write_bytes(b"engine")
    run = execute.engine_runner("tensorrt", path, FakeRuntime.memory)
    assert np.array_equal(run({"x": np.ones((2, 2), np.float32)})["y"], np.full((2, 2), 2.0))
    with pytest.raises(ValueError, match="outside what the engine was built for"):
        run({"x": np.ones((6, 2), np.float32)})
    path.write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="cannot load it here"):
        execute.engine_runner("tensorrt", path, FakeRuntime.memory)
