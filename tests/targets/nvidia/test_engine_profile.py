import itertools

import numpy as np
import pytest
import texts
from graphs_past import WITH_PAST

from graphcompress.build.optimize import optimize
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.targets.nvidia.engine_profile import ALL, BOTH, PREFILL, STEPS, fitting, profiles
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
        (
            DECODER,
            {ALL: {"x": [[1, 1, 8], [2, 9, 8], [4, 20, 8]], "seen": [[1, 1, 8], [2, 9, 8], [4, 20, 8]]}},
        ),
        (IMAGE, {ALL: {"pixels": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]}}),
        (FIXED, {}),
        (
            WITH_PAST,
            {
                PREFILL: {
                    "past_keys": [[1, 2, 0, 8], [2, 2, 0, 8], [4, 2, 0, 8]],
                    "new": [[1, 2, 1, 8], [2, 2, 9, 8], [4, 2, 20, 8]],
                    "attention_mask": [[1, 1], [2, 9], [4, 20]],
                },
                STEPS: {
                    "past_keys": [[1, 2, 1, 8], [2, 2, 8, 8], [4, 2, 19, 8]],
                    "new": [[1, 2, 1, 8], [2, 2, 1, 8], [4, 2, 1, 8]],
                    "attention_mask": [[1, 2], [2, 9], [4, 20]],
                },
            },
        ),
    ],
)
def test_every_length_of_the_inputs_is_in_the_profile(text, shapes):
    assert profiles(texts.model_of(text), "2x9", "4x20") == shapes


def test_one_profile_that_covers_both_phases_is_tuned_for_steps():
    assert profiles(texts.model_of(WITH_PAST), "2x9", "4x20", apart=False) == {
        BOTH: {
            "past_keys": [[1, 2, 0, 8], [2, 2, 8, 8], [4, 2, 10, 8]],
            "new": [[1, 2, 1, 8], [2, 2, 1, 8], [4, 2, 10, 8]],
            "attention_mask": [[1, 1], [2, 9], [4, 20]],
        }
    }


def test_lengths_of_past_and_new_tokens_by_name():
    model = texts.model_of(WITH_PAST)
    opt, largest = "batch=1,past=8,sequence=4,total=12", "batch=2,past=30,sequence=6,total=36"
    assert profiles(model, opt, largest) == {
        PREFILL: {
            "past_keys": [[1, 2, 0, 8], [1, 2, 0, 8], [2, 2, 0, 8]],
            "new": [[1, 2, 1, 8], [1, 2, 4, 8], [2, 2, 6, 8]],
            "attention_mask": [[1, 1], [1, 4], [2, 6]],
        },
        STEPS: {
            "past_keys": [[1, 2, 1, 8], [1, 2, 8, 8], [2, 2, 30, 8]],
            "new": [[1, 2, 1, 8], [1, 2, 1, 8], [2, 2, 1, 8]],
            "attention_mask": [[1, 2], [1, 9], [2, 31]],
        },
    }


MASKED = """
g (float[batch, 2, past, 8] past_key_values, int64[batch, sequence] input_ids,
   int64[batch, total] attention_mask) => (int64[batch, sequence] y) { y = Identity(input_ids) }
"""
"""Nothing in the graph says what the length of its mask is."""

LISTED = """
g (float[batch, 2, past, 8] past_key_values, int64[batch, sequence] input_ids,
   int64[sequence] cache_position) => (int64[batch, sequence] y) { y = Identity(input_ids) }
"""


@pytest.mark.parametrize(
    ("text", "name", "prefill", "steps"),
    [
        (MASKED, "attention_mask", [[1, 1], [2, 9], [4, 20]], [[1, 2], [2, 9], [4, 20]]),
        (LISTED, "cache_position", [[1], [9], [20]], [[1], [1], [1]]),
    ],
)
def test_masks_and_lists_of_positions_follow_the_tokens(text, name, prefill, steps):
    found = profiles(texts.model_of(text), "2x9", "4x20")
    assert (found[PREFILL][name], found[STEPS][name]) == (prefill, steps)


@pytest.mark.parametrize("name", ["marian", "whisper", "llama", "gpt2", "t5, merged"])
@pytest.mark.parametrize("apart", [True, False])
def test_a_model_that_writes_runs_at_every_shape_of_its_profiles(name, apart, sequence_folders, tmp_path):
    """The runtime is the oracle of sizes that hang together: past, new tokens, mask, positions."""
    model = Model.load(sequence_folders[name])
    parts = model.separate() if model.joined else [(model.parts[0], model)]
    for part, graph in parts:
        found = profiles(graph, "2x5", "3x12", apart=apart)
        role = {"encoder": ALL, "decoder": ALL}.get(
            part.role, STEPS if part.reads("past") and model.joined else ""
        )
        assert list(found) == ([role] if role else [PREFILL, STEPS] if apart else [BOTH])
        with Runner(graph) as run:
            for profile, bound in itertools.product(found.values(), range(3)):
                assert set(profile) == {
                    value.name for value in graph.graph.inputs if not value.shape.is_static()
                }
                assert all(np.all(np.diff(np.array(shapes), axis=0) >= 0) for shapes in profile.values())
                run({value.name: _zeros(value, profile, bound) for value in graph.graph.inputs})


def _zeros(value, profile, bound):
    shape = profile[value.name][bound] if value.name in profile else list(value.shape)
    ones = "mask" in value.name
    return (np.ones if ones else np.zeros)(shape, value.dtype.numpy())


def test_the_profile_of_a_step_and_of_a_prompt_is_found_by_its_shapes():
    both = list(profiles(texts.model_of(WITH_PAST), "2x9", "4x20").values())

    def number(batch, past, new):
        keys, mask = [batch, 2, past, 8], [batch, past + new]
        return fitting(both, {"past_keys": keys, "new": [batch, 2, new, 8], "attention_mask": mask})

    assert [number(1, 0, 5), number(4, 0, 1), number(3, 7, 1)] == [0, 0, 1]
    assert [number(1, 7, 2), number(5, 0, 1), number(1, 20, 1)] == [None, None, None]


def test_a_profile_is_no_longer_than_the_positions_that_the_model_has(tiny_bert):
    shapes = profiles(tiny_bert, "1x128", "8x512")[ALL]
    assert shapes["input_ids"] == [[1, 1], [1, 64], [8, 64]]


def test_sizes_of_a_profile_by_name():
    model = texts.model_of(FREE_IMAGE)
    shapes = profiles(model, "batch=1,height=4,width=6", "batch=2,height=8,width=8")
    assert shapes == {ALL: {"pixels": [[1, 3, 1, 1], [1, 3, 4, 6], [2, 3, 8, 8]]}}


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
