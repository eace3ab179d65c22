import pytest
import texts
from graphs_past import WITH_PAST

from graphcompress.build.optimize import optimize
from graphcompress.errors import UsageError
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.targets.nvidia.engine_profile import profile_shapes
from graphcompress.targets.nvidia.engines.builder import RTX, is_installed

DECODER = """
g (float[batch, sequence, 8] x, float[batch, source, 8] seen) => (float[batch, sequence, source] y)
<float[8, 8] query>
{ q = MatMul(x, query)
  t = Transpose <perm = [0, 2, 1]> (seen)
  y = MatMul(q, t) }
"""
IMAGE = "g (float[batch, 3, 8, 8] pixels) => (float[batch, 3, 8, 8] y) { y = Relu(pixels) }"
FREE_IMAGE = "g (float[batch, 3, height, width] pixels) => (float[batch, 3, h, w] y) { y = Relu(pixels) }"
FIXED = "g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }"


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (DECODER, {"x": [[1, 1, 8], [2, 9, 8], [4, 20, 8]], "seen": [[1, 1, 8], [2, 9, 8], [4, 20, 8]]}),
        (IMAGE, {"pixels": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}),
        (FIXED, {}),
        (
            WITH_PAST,
            {
                "past_keys": [[1, 2, 1, 8], [2, 2, 9, 8], [4, 2, 20, 8]],
                "new": [[1, 2, 1, 8], [2, 2, 9, 8], [4, 2, 20, 8]],
                "attention_mask": [[1, 2], [2, 18], [4, 40]],
            },
        ),
    ],
)
def test_every_length_of_the_inputs_is_in_the_profile(text, shapes):
    assert profile_shapes(texts.model_of(text), "2x9", "4x20") == shapes


def test_a_profile_is_no_longer_than_the_positions_that_the_model_has(tiny_bert):
    shapes = profile_shapes(tiny_bert, "1x128", "8x512")
    assert shapes["input_ids"] == [[1, 1], [1, 64], [8, 64]]


def test_sizes_of_a_profile_by_name():
    model = texts.model_of(FREE_IMAGE)
    shapes = profile_shapes(model, "batch=1,height=4,width=6", "batch=2,height=8,width=8")
    assert shapes == {"pixels": [[1, 3, 1, 1], [1, 3, 4, 6], [2, 3, 8, 8]]}


@pytest.mark.parametrize(
    "target", ["tensorrt{build=never}", "gpu{provider=tensorrt}", "gpu{provider=nv_tensorrt_rtx}"]
)
def test_a_model_of_any_kind_is_lowered_without_options(tmp_path, target):
    for text in (DECODER, IMAGE, WITH_PAST):
        record = parse_target(target).lower(texts.model_of(text), tmp_path, Context()).record
        assert record["opset"] == 19


@pytest.mark.skipif(not is_installed(RTX), reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("text", [DECODER, IMAGE, WITH_PAST])
def test_engines_of_any_kind_of_model_are_really_built(tmp_path, text):
    target = parse_target("tensorrt{compute=86 build=require opt=1x8 largest=2x16}")
    record = target.lower(texts.model_of(text), tmp_path, Context()).record
    assert [it["compute"] for it in record["engines"]] == ["SM86"]


@pytest.mark.parametrize("target", ["tensorrt", "gpu{provider=nv_tensorrt_rtx}"])
def test_sizes_that_do_not_fit_the_model_are_refused_before_the_passes(tmp_path, target):
    name, _, others = target.partition("{")
    options = f'{others.removesuffix("}")} opt="batch=1,sequence=4"'
    chosen = f"{name}{{{options.strip()}}}"
    done = []
    with pytest.raises(UsageError, match=r'source would stay variable; .* by name: opt="batch=1'):
        optimize(
            texts.model_of(DECODER), "simplify", target=chosen, output=tmp_path / "o", on_record=done.append
        )
    assert done == []


def test_names_of_inputs_that_the_provider_cannot_read_are_refused():
    model = texts.model_of(IMAGE)
    model.graph.inputs[0].name = "pixels:0"
    parse_target("gpu").check_model(model)
    with pytest.raises(
        UsageError, match="trt_profile_min_shapes is input:1x8x…,input:…, got 'pixels:0:1x3x8x8'"
    ):
        parse_target("gpu{provider=tensorrt}").check_model(model)
