import json

import numpy as np
import onnx
import pytest
import texts
from graphs_int8 import Maker, floats, kronecker, network, saved, tensor
from graphs_past import WITH_PAST
from onnx import TensorProto

from graphcompress.data.load import Samples
from graphcompress.errors import DataError, UnsupportedModelError, UsageError
from graphcompress.files import runtime
from graphcompress.files.runtime import provider_session
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.nvidia import gpu
from graphcompress.targets.nvidia.float16 import clip_constants, to_half
from graphcompress.targets.nvidia.float16_range import wide_values

WIDTH, HEADS = 32, 2


def attention(folder, scale=1.0):
    """LayerNormalization and a masked attention; a mean over the real tokens behind it."""
    make = Maker()
    x = make.node("Mul", "x", make.constant("grown", np.float32(scale)), out="big")
    gain = make.constant("gain", np.ones(WIDTH, np.float32))
    shift = make.constant("shift", np.zeros(WIDTH, np.float32))
    make.node("LayerNormalization", x, gain, shift, out="normal", axis=-1)
    parts = make.constant("parts", np.array([0, 0, HEADS, WIDTH // HEADS]))
    for name in "qkv":
        weight = make.constant(f"w{name}", make.rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 6)
        make.node("MatMul", "normal", weight, out=name)
        make.node("Reshape", name, parts, out=f"{name}4")
        perm = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        make.node("Transpose", f"{name}4", out=f"{name}h", perm=perm)
    make.node("MatMul", "qh", "kh", out="scores")
    make.node("Mul", "scores", make.constant("root", np.float32(0.25)), out="scaled")
    make.node("Cast", "mask", out="float_mask", to=TensorProto.FLOAT)
    make.node("Sub", make.constant("one", np.float32(1)), "float_mask", out="hidden")
    make.node("Mul", "hidden", make.constant("lowest", np.finfo(np.float32).min), out="bias")
    make.node("Unsqueeze", "bias", make.constant("axes", np.array([1, 2])), out="bias4")
    make.node("Add", "scaled", "bias4", out="masked")
    make.node("Softmax", "masked", out="probabilities", axis=-1)
    make.node("MatMul", "probabilities", "vh", out="context")
    make.node("Transpose", "context", out="moved", perm=[0, 2, 1, 3])
    make.node("Reshape", "moved", make.constant("joined", np.array([0, 0, WIDTH])), out="merged")
    make.node("Add", "merged", "normal", out="summed")
    axis = make.constant("axis", np.array([1]))
    make.node("ReduceSum", "summed", axis, out="total", keepdims=0)
    make.node("ReduceSum", "float_mask", axis, out="count", keepdims=1)
    make.node("Clip", "count", make.constant("tiny", np.float32(1e-9)), out="safe")
    make.node("Div", "total", "safe", out="y")
    inputs = [floats("x", WIDTH), tensor("mask", TensorProto.INT64, "batch", "length")]
    return saved(make.model(inputs, [tensor("y", TensorProto.FLOAT, "batch", WIDTH)]), folder)


def samples(count=4, length=7):
    rng = np.random.default_rng(1)
    mask = np.ones(length, np.int64)
    return Samples(
        [{"x": rng.standard_normal((length, WIDTH)).astype(np.float32), "mask": mask} for _ in range(count)]
    )


def feed_with_padding():
    feed = samples().batch(range(4))
    feed["mask"] = np.array(feed["mask"])
    feed["mask"][1:, 4:] = 0
    return feed


def kept_db(model, folder, feed):
    with Runner(model, optimize=False) as run:
        expected = run(feed)["y"]
    return sqnr_db(expected, parse_target("gpu").session(folder)(feed)["y"])


def test_half_with_fused_attention_answers_the_same_with_padding(tmp_path):
    model = attention(tmp_path)
    record = parse_target("gpu").lower(model, tmp_path, Context(samples())).record
    assert record["attentions_fused"] == 1
    assert kept_db(model, tmp_path, feed_with_padding()) > 45
    nodes = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "MultiHeadAttention" in nodes
    assert "Softmax" not in nodes


def test_sums_and_tiny_numbers_stay_in_float32(tmp_path):
    record = parse_target("gpu").lower(attention(tmp_path), tmp_path, Context(samples())).record
    kept = set(record["float32_nodes"])
    assert {"n_total", "n_count", "n_safe", "n_y"} <= kept
    assert not kept & {"n_normal", "n_q"}


def test_values_beyond_half_stay_in_float32(tmp_path):
    model = attention(tmp_path, scale=1e5)
    record = parse_target("gpu").lower(model, tmp_path, Context(samples())).record
    assert record["values_beyond_float16"] == ["big"]
    assert {"n_big", "n_normal"} <= set(record["float32_nodes"])
    assert kept_db(model, tmp_path, feed_with_padding()) > 45


def test_masks_become_finite_in_half(tmp_path):
    model = attention(tmp_path)
    with Rewriter(model, Context()) as rw:
        assert clip_constants(rw) == 1
        assert model.graph.initializers["lowest"].const_value.numpy() == -30000
    assert wide_values(model, Context(samples())) == set()


@pytest.mark.parametrize(("reader", "clipped"), [("Add", 1), ("Mod", 0)])
def test_a_mask_that_is_looked_up_becomes_finite_in_half_where_arithmetic_reads_it(tmp_path, reader, clipped):
    make = Maker()
    table = make.constant("table", np.array([[0.0], [-3.4e38]], np.float32))
    make.node("Gather", table, make.constant("row", np.array([1])), out="mask")
    make.node(reader, "x", "mask", out="y", **({"fmod": 1} if reader == "Mod" else {}))
    model = saved(make.model([floats("x", 4)], [floats("y", 4)], opset=19), tmp_path)
    with Rewriter(model, Context()) as rw:
        assert clip_constants(rw) == clipped


def test_angles_are_computed_in_float32(tmp_path):
    make = Maker()
    make.node("Mul", "positions", make.constant("frequency", np.float32(0.3)), out="angle")
    make.node("Sin", "angle", out="sine")
    make.node("Mul", "sine", make.constant("two", np.float32(2)), out="y")
    model = saved(make.model([floats("positions", 4)], [floats("y", 4)], opset=19), tmp_path)
    with Rewriter(model, Context()) as rw:
        halved = to_half(rw)
    assert halved.kept == ("n_angle", "n_sine")
    assert halved.half == 1


def test_an_attention_behind_a_guard_is_told_of(tmp_path):
    make = Maker()
    make.node("Softmax", "x", out="soft", axis=-1)
    make.node("IsNaN", "soft", out="nan")
    make.node("Where", "nan", make.constant("zero", np.float32(0)), "soft", out="y")
    model = saved(make.model([floats("x", 4)], [floats("y", 4)], opset=19), tmp_path)
    (note,) = parse_target("gpu").lower(model, tmp_path, Context()).notes
    assert note.startswith("1 attentions are not fused")
    assert "n_soft" in note


@pytest.mark.parametrize("reader", ["Relu", "ReduceSum"])
def test_an_output_that_is_read_inside_is_float32_outside_alone(tmp_path, reader):
    make = Maker()
    make.node("Neg", "x", out="hidden")
    make.node("Abs", "hidden", out="y")
    make.node(reader, "hidden", out="z")
    outputs = [floats(name, 4) for name in ("hidden", "y")]
    outputs.append(floats("z", 4) if reader == "Relu" else tensor("z", TensorProto.FLOAT, 1, 1, 1))
    model = saved(make.model([floats("x", 4)], outputs, opset=19), tmp_path)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(1, 2, 4)}
    with Runner(model) as run:
        expected = run(feed)
    with Rewriter(model, Context()) as rw:
        to_half(rw)
    assert {it.dtype.name for it in model.graph.outputs} == {"FLOAT"}
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == len({(node.inputs[0], node.attributes["to"].value) for node in casts})
    with Runner(model) as run:
        found = run(feed)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_old_reductions_are_written_anew(tmp_path):
    make = Maker()
    make.node("ReduceMean", "x", out="y", axes=[-1], keepdims=1)
    model = saved(make.model([floats("x", 4)], [floats("y", 1)], opset=13), tmp_path)
    feed = {"x": np.arange(8, dtype=np.float32).reshape(1, 2, 4)}
    with Runner(model) as run:
        expected = run(feed)["y"]
    with Rewriter(model, Context()) as rw:
        assert raise_opset(rw, 19) is None
    assert model.opset == 19
    with Runner(model) as run:
        assert np.array_equal(run(feed)["y"], expected)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_normalisation_that_the_own_opset_has_no_operator_for_is_one_in_half(tmp_path, provider):
    make = Maker()
    make.node("ReduceMean", "x", out="mean", axes=[-1])
    make.node("Sub", "x", "mean", out="centred")
    make.node("Pow", "centred", make.constant("two", np.float32(2)), out="squares")
    make.node("ReduceMean", "squares", out="variance", axes=[-1])
    make.node("Add", "variance", make.constant("epsilon", np.float32(1e-12)), out="above")
    make.node("Sqrt", "above", out="deviation")
    make.node("Div", "centred", "deviation", out="normal")
    make.node("Mul", "normal", make.constant("gain", np.full(8, 2, np.float32)), out="scaled")
    make.node("Add", "scaled", make.constant("shift", np.ones(8, np.float32)), out="y")
    model = saved(make.model([floats("x", 8)], [floats("y", 8)], opset=13), tmp_path)
    record = parse_target(f"gpu{{provider={provider}}}").lower(model, tmp_path, Context()).record
    assert record["float32_nodes"] == []
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes == ["Cast", "LayerNormalization", "Cast"]


@pytest.mark.parametrize("provider", ["tensorrt", "nv_tensorrt_rtx"])
def test_the_providers_of_tensorrt_get_standard_operators_and_shapes(tmp_path, provider):
    target = parse_target(f"gpu{{provider={provider} opt=2x8 largest=4x16}}")
    record = target.lower(network(tmp_path), tmp_path, Context()).record
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert {node.domain for node in nodes} == {""}
    recipe = json.loads((tmp_path / "session.json").read_text())
    assert recipe == json.loads(json.dumps(record["session"]))
    options = recipe["providers"][0][1]
    shapes = {key.split("_profile_")[1]: value for key, value in options.items() if "_profile_" in key}
    assert shapes == {"min_shapes": "ids:1x1", "opt_shapes": "ids:2x8", "max_shapes": "ids:4x16"}


def _decoder(tmp_path, provider):
    target = parse_target(f"gpu{{provider={provider} opt=1x8 largest=2x16}}")
    target.lower(texts.model_of(WITH_PAST), tmp_path, Context())
    recipe = json.loads((tmp_path / "session.json").read_text())
    return target, recipe, recipe["providers"][0][1]


def test_one_profile_of_tensorrt_covers_the_first_tokens_and_steps(tmp_path):
    """ONNX Runtime's provider builds engines with several, and runs the first of them alone."""
    _, recipe, options = _decoder(tmp_path, "tensorrt")
    assert "profiles" not in recipe
    assert {kind: options[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")} == {
        "min": "past_keys:1x2x0x8,new:1x2x1x8,attention_mask:1x1",
        "opt": "past_keys:1x2x7x8,new:1x2x1x8,attention_mask:1x8",
        "max": "past_keys:2x2x8x8,new:2x2x8x8,attention_mask:2x16",
    }


def test_a_run_of_tensorrt_for_rtx_says_which_profile_it_is_of(tmp_path, monkeypatch):
    target, recipe, options = _decoder(tmp_path, "nv_tensorrt_rtx")
    assert options["nv_multi_profile_enable"] == "1"
    assert options["nv_profile_max_shapes"] == (
        "past_keys:2x2x0x8,new:2x2x16x8,attention_mask:2x16,past_keys:2x2x15x8,new:2x2x1x8,attention_mask:2x16"
    )
    assert [one["for"] for one in recipe["profiles"]] == ["prefill", "steps"]
    said = []

    class Session:
        def get_outputs(self):
            return []

        def run(self, names, feed, run_options):
            said.append(run_options.get_run_config_entry("nv_profile_index"))
            return []

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["NvTensorRTRTXExecutionProvider"])
    monkeypatch.setattr(gpu, "provider_session", lambda *given: Session())
    run = target.session(tmp_path)
    for one in recipe["profiles"]:
        run({name: np.zeros(bounds[1]) for name, bounds in one["shapes"].items()})
    assert said == ["0", "1"]
    with pytest.raises(DataError, match="in no profile of the engine"):
        run({name: np.zeros([9, *bounds[1][1:]]) for name, bounds in recipe["profiles"][0]["shapes"].items()})


def test_tensorrt_gets_the_graph_as_it_is_and_its_flags_as_words(tmp_path):
    target = parse_target('gpu{provider=tensorrt options="trt_dump_subgraphs=1;trt_sparsity_enable=false"}')
    session = target.lower(network(tmp_path), tmp_path, Context()).record["session"]
    assert session["session_options"] == {"graph_optimization_level": "ORT_DISABLE_ALL"}
    assert [name for name, _ in session["providers"]] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    options = session["providers"][0][1]
    flags = {name: options[name] for name in options if name.endswith(("_enable", "_subgraphs"))}
    assert flags == {
        "trt_engine_cache_enable": "True",
        "trt_fp16_enable": "True",
        "trt_int8_enable": "True",
        "trt_dump_subgraphs": "True",
        "trt_sparsity_enable": "False",
    }


def test_the_session_is_made_as_the_recipe_says_and_does_not_fall_back(tmp_path, monkeypatch):
    made = {}

    class Session:
        def __init__(self, path, options, **given):
            made.update(given, level=options.graph_optimization_level.name)

        def get_providers(self):
            return [name for name, _ in made["providers"]]

        def get_outputs(self):
            return []

    parse_target("gpu{provider=tensorrt}").lower(network(tmp_path), tmp_path, Context())
    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    parse_target("gpu{provider=tensorrt}").session(tmp_path)
    assert made["level"] == "ORT_DISABLE_ALL"
    assert made["enable_fallback"] is False


@pytest.mark.parametrize(("provider", "notes"), [("cuda", 1), ("tensorrt", 0)])
def test_cuda_says_that_it_multiplies_int8_weights_in_float16(tmp_path, provider, notes):
    record = parse_target(f"gpu{{provider={provider}}}").lower(network(tmp_path), tmp_path, Context()).record
    assert [note.startswith("2 products have int8 weights") for note in record["notes"]] == [True] * notes


def test_cuda_says_so_of_weights_that_are_computed_from_factors_too(tmp_path):
    record = parse_target("gpu").lower(kronecker(tmp_path), tmp_path, Context()).record
    assert record["notes"][0].startswith("1 products have int8 weights")


@pytest.mark.filterwarnings("ignore:Specified provider")  # the runtime only warns of it
def test_what_ran_the_artifact_is_said(tmp_path, monkeypatch):
    target = parse_target("gpu")
    record = target.lower(attention(tmp_path), tmp_path, Context(samples())).record
    assert record["proof"].startswith("not run by CUDAExecutionProvider")
    assert not target.timed
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert target.timed
    with pytest.raises(UnsupportedModelError, match="CUDAExecutionProvider did not come up"):
        target.session(tmp_path)


def test_a_provider_that_is_here_runs_the_recipe(tmp_path):
    parse_target("gpu").lower(attention(tmp_path), tmp_path, Context(samples()))
    session = provider_session(tmp_path / "model.onnx", [("CPUExecutionProvider", {})])
    assert runtime.runner_of(session)(feed_with_padding())["y"].shape == (4, WIDTH)


# ---- options of the provider


@pytest.mark.parametrize(
    ("provider", "options", "reason"),
    [
        ("cuda", "use_tf33=1", "CUDAExecutionProvider has no option 'use_tf33'.*use_tf32"),
        ("cuda", "use_tf32=2", "use_tf32 is 0 or 1, got '2'"),
        ("cuda", "gpu_mem_limit=2GB", "gpu_mem_limit is a whole number"),
        ("cuda", "cudnn_conv_algo_search=FAST", "is EXHAUSTIVE, HEURISTIC or DEFAULT"),
        ("cuda", "use_tf32", "expected name=value"),
        ("cuda", "trt_fp16_enable=1", "has no option"),
        ("tensorrt", "trt_profile_opt_shapes=ids:1x", "input:1x8x"),
        ("tensorrt", "trt_fp16_enable=yes", "trt_fp16_enable is True or False, got 'yes'"),
        ("tensorrt", "trt_profile_opt_shapes=ids:0:1x8", "input:1x8x"),
        ("nv_tensorrt_rtx", "nv_weight_streaming_budget=half", "nv_weight_streaming_budget is -1, bytes"),
        ("nv_tensorrt_rtx", "trt_engine_cache_path=x", "NvTensorRTRTXExecutionProvider has no option"),
    ],
)
def test_an_option_that_the_provider_does_not_take_is_refused_before_the_work(provider, options, reason):
    with pytest.raises(UsageError, match=reason):
        parse_target(f'gpu{{provider={provider} options="{options}"}}')


def test_options_of_the_provider_are_in_the_recipe_of_the_session(tmp_path):
    target = parse_target('gpu{options="use_tf32=1;gpu_mem_limit=2000000000"}')
    assert parse_target(str(target)) == target
    record = target.lower(attention(tmp_path), tmp_path, Context()).record
    name, options = record["session"]["providers"][0]
    assert (name, options["use_tf32"], options["gpu_mem_limit"]) == (
        "CUDAExecutionProvider",
        "1",
        "2000000000",
    )


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("cuda", "use_tf32=True"),
        ("tensorrt", "trt_load_user_initializer=1;trt_preview_features=kALIASED_PLUGIN_IO_10_03"),
        ("nv_tensorrt_rtx", "nv_weight_streaming_budget=512M;nv_op_types_to_exclude=Conv,Relu"),
    ],
)
def test_options_that_the_provider_documents_are_taken(provider, options):
    target = parse_target(f'gpu{{provider={provider} options="{options}"}}')
    assert parse_target(str(target)) == target


def test_constants_of_several_numbers_beyond_half_stay_in_float32(tmp_path):
    floor = onnx.numpy_helper.from_array(np.array([1e5, 1e-3], np.float32), "floor")
    node = onnx.helper.make_node("Max", ["x", "floor"], ["y"], name="n_max")
    x, y = (onnx.helper.make_tensor_value_info(it, onnx.TensorProto.FLOAT, ["batch", 2]) for it in "xy")
    graph = onnx.helper.make_graph([node], "floors", [x], [y], [floor])
    path = tmp_path / "floors.onnx"
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    made.ir_version = 9
    onnx.save(made, path)
    model = Model.load(path)
    with Rewriter(model, Context()) as rw:
        assert to_half(rw).kept == ("n_max",)
    with Runner(model) as run:
        assert run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[1e5, 1.0]]
