"""tensorrt: engines are compiled, their logs are read, and every int8 product is required."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from graphs_int8 import HIDDEN, WIDTH, kronecker, network
from tensorrt_models import activations, ids, outputs

from graphcompress.errors import MissingExtraError, UnsupportedModelError, UsageError
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import INT8, integer_products
from graphcompress.plugin.targeting import parse_target
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.nvidia import tensorrt
from graphcompress.targets.nvidia.dequantised_tables import dequantise_before_lookup
from graphcompress.targets.nvidia.engine_profile import profiles
from graphcompress.targets.nvidia.engines import builder, worker
from graphcompress.targets.nvidia.engines.builder import build_engine, is_installed
from graphcompress.targets.nvidia.engines.log import int8_products, layers_in
from graphcompress.targets.nvidia.float16 import to_half

rtx = pytest.mark.skipif(
    not is_installed(builder.RTX),
    reason="tensorrt_rtx is not installed: pip install 'graphcompress[tensorrt-rtx]'",
)


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


def answers(module, result, log=LOG, code=0, stderr=b""):
    def run(command, **_):
        asked = json.loads(Path(command[-1]).read_text())
        assert asked["module"] == module
        Path(asked["log"]).write_text(log)
        if result is not None:
            Path(asked["result"]).write_text(json.dumps(result))
        return builder.subprocess.CompletedProcess(command, code, b"", stderr)

    return run


def built(tmp_path, expected, profiles=(), **options):
    return build_engine(
        tmp_path / "m.onnx",
        tmp_path / "m.engine",
        compute="SM86",
        expected=expected,
        profiles=profiles,
        timeout_s=9,
        **options,
    )


def test_every_int8_product_is_required(tmp_path, monkeypatch):
    monkeypatch.setattr(builder.subprocess, "run", answers(builder.RTX, {"version": "1", "refused": []}))
    assert built(tmp_path, ["n_a", "n_b"]).int8 == ("n_a", "n_b")
    with pytest.raises(UnsupportedModelError, match=r"2 of 3 Int8 products \(n_c: gemm"):
        built(tmp_path, ["n_a", "n_b", "n_c"])


class FakeProfile(dict):
    def set_shape(self, name, *bounds):
        self[name] = bounds


class FakeCompiler:
    """As much of the whole of TensorRT as a build takes; its log is silent, its inspector is not."""

    __version__ = "10.0"
    profiles: ClassVar[list[FakeProfile]] = []
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

        def create_builder_config(self):
            return SimpleNamespace(add_optimization_profile=FakeCompiler.profiles.append)

        def create_optimization_profile(self):
            return FakeProfile()

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
    monkeypatch.setattr(FakeCompiler, "profiles", [])
    both = [{"x": [[1, 1], [1, 8], [2, 9]]}, {"x": [[1, 1], [1, 1], [2, 1]]}]
    engine = built(tmp_path, ["n_a"], module=builder.FULL, profiles=both)
    assert FakeCompiler.profiles == [{"x": ((1, 1), (1, 8), (2, 9))}, {"x": ((1, 1), (1, 1), (2, 1))}]
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


@pytest.mark.parametrize(("target", "given"), [("tensorrt", ""), ("gpu", "provider=tensorrt ")])
@pytest.mark.parametrize(
    "options", ["opt=1y128", "largest=8by512", "opt=8x16 largest=4x512", 'opt="batch=9" largest="batch=8"']
)
def test_sizes_of_the_profile_are_refused_at_once(target, given, options):
    with pytest.raises(UsageError, match=f"{target}(: opt=|: largest=|{{opt=)"):
        parse_target(f"{target}{{{given}{options}}}")


@pytest.mark.parametrize("seconds", [7.0, 90.0])
def test_the_time_for_an_engine_is_what_was_given(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: None)
    monkeypatch.setattr(tensorrt, "is_installed", [builder.RTX].__contains__)
    times = []

    def record(graph, engine, *, compute, module, timeout_s, **_):
        times.append(timeout_s)
        engine.write_bytes(b"e")
        return builder.Engine(engine, compute, module, "1", (), (), (), 0.0)

    monkeypatch.setattr(tensorrt, "build_engine", record)
    target = parse_target(f"tensorrt{{compute=86 timeout={seconds:g}}}")
    target.lower(network(tmp_path), tmp_path, Context(ids()))
    assert times == [seconds]


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
    shapes = profiles(model, "2x8", "4x16")["all"]
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
            profiles=[{"ids": [[1, 1], [1, 8], [2, 16]]}],
            timeout_s=120,
        )
