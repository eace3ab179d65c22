"""Made-up samples: sizes differ, 1 is among them and one beyond every bound, some end in padding, all run."""

from __future__ import annotations

import numpy as np
import pytest
from graphs_past import WITH_PAST
from texts import model_of

from graphcompress.data.lengths import largest_bound, mask_lengths, total_length
from graphcompress.data.made_up import SIZES, synthetic_samples, varied_samples
from graphcompress.data.samples import Samples, padding_mask
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner


def made(text: str) -> tuple[Model, Samples]:
    model = model_of(text)
    samples = varied_samples(model)
    assert samples.synthetic
    with Runner(model) as run:
        run(samples.batch(range(len(samples))))
        for index in range(len(samples)):
            run(samples.batch([index]))
    return model, samples


def sizes(samples: Samples, name: str, axis: int = 0) -> list[int]:
    return [feed[name].shape[axis] for feed in samples.feeds]


def test_one_symbol_takes_all_sizes_and_some_samples_end_in_padding(tiny_bert) -> None:
    samples = varied_samples(tiny_bert)
    assert sizes(samples, "input_ids") == list(SIZES)
    masks = [feed["attention_mask"] for feed in samples.feeds]
    assert [int((mask == 0).sum()) for mask in masks] == [0, 0, 0, 0, 0, 0, 0, 5]
    assert all(list(mask) == sorted(mask, reverse=True) for mask in masks)
    mask = padding_mask(samples.batch(range(8)))
    assert mask is not None
    assert mask.shape == (8, 40)
    types = np.concatenate([feed["token_type_ids"] for feed in samples.feeds])
    assert set(types) == {0, 1}


TWO = """
g (float[batch, queries, 16] x, float[batch, keys, 16] m) => (float[batch, queries, 16] y)
<float[16, 16] w> {
  k = MatMul (m, w)
  t = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (x, t)
  p = Softmax (s)
  y = MatMul (p, m)
}
"""


def test_two_symbols_differ_in_every_sample_and_each_is_one_somewhere() -> None:
    _, samples = made(TWO)
    queries, keys = sizes(samples, "x"), sizes(samples, "m")
    assert all(a != b for a, b in zip(queries, keys, strict=True))
    assert sorted(queries) == sorted(keys) == sorted(SIZES)


def test_two_names_of_one_size_are_found_out() -> None:
    _, samples = made(
        TWO.replace("y = MatMul (p, m)", "r = Reshape (m, like) y = MatMul (p, r)").replace(
            "k = MatMul", "like = Shape (x) k = MatMul"
        )
    )
    assert sizes(samples, "x") == sizes(samples, "m") == list(SIZES)


def test_past_and_new_tokens_differ_and_add_up_in_a_batch() -> None:
    _, samples = made(WITH_PAST)
    past, new, mask = (
        sizes(samples, "past_keys", 1),
        sizes(samples, "new", 1),
        sizes(samples, "attention_mask"),
    )
    assert [a + b for a, b in zip(past, new, strict=True)] == mask
    assert sum(a == b for a, b in zip(past, new, strict=True)) <= 1


OVERRIDABLE_SIZES = """
g (int64[batch, sequence] ids, int64[batch, keys] attention_mask, int64[2] front)
  => (float[batch, 1, sequence, keys] y)
<int64[2] front = {1, 1}, float[11, 4] table, int64[1] two = {2}, int64[2] axes = {1, 2}> {
  x = Gather (table, ids)
  t = Transpose <perm = [0, 2, 1]> (x)
  scores = MatMul (x, t)
  s = Unsqueeze (scores, two)
  last = Constant <value = int64[2] {1, 1}> ()
  shape = Concat <axis = 0> (front, last)
  wide = Unsqueeze (attention_mask, axes)
  mask = Cast <to = 1> (wide)
  m = Expand (mask, shape)
  p = Transpose <perm = [0, 2, 1, 3]> (s)
  y = Add (p, m)
}
"""


def test_a_list_of_sizes_that_a_caller_may_override_is_no_past() -> None:
    model, samples = made(OVERRIDABLE_SIZES)
    assert total_length(model) is None
    assert sizes(samples, "ids") == sizes(samples, "attention_mask") == list(SIZES)


def test_the_operator_attention_joins_past_and_new_keys() -> None:
    model = model_of(
        """
        g (float[batch, 2, new, 8] x, float[batch, 2, past, 8] k, float[batch, 2, past, 8] v)
          => (float[batch, 2, new, 8] y, float[batch, 2, all, 8] keys, float[batch, 2, all, 8] values)
        {
          t = Tanh (x)
          y, keys, values = Attention (x, t, t, , k, v)
        }
        """,
        opset=23,
    )
    assert str(total_length(model)) == "new + past"


CLASS_IN_FRONT = """
g (float[batch, sequence, 8] x, int64[batch, seen] attention_mask) => (float[batch, all, 8] y)
<float[1, 1, 8] cls, int64[1] one = {1}, int64[2] axes = {1, 1}, int64[1] first = {0}, int64[1] eight = {8}> {
  shape = Shape (x)
  batch = Gather (shape, first)
  front = Concat <axis = 0> (batch, one, eight)
  token = Expand (cls, front)
  all = Concat <axis = 1> (token, x)
  turned = Transpose <perm = [0, 2, 1]> (all)
  scores = MatMul (all, turned)
  MASK
  wide = Unsqueeze (mask, one)
  added = Cast <to = 1> (wide)
  masked = Add (scores, added)
  shares = Softmax (masked)
  y = MatMul (shares, all)
}
"""


@pytest.mark.parametrize(
    ("mask", "more"),
    [
        ("mask = Identity (attention_mask)", 1),
        (
            """two = Concat <axis = 0> (batch, one) ones = Expand (one, two)
               mask = Concat <axis = 1> (ones, attention_mask)""",
            0,
        ),
    ],
    ids=["masked itself", "seen by all"],
)
def test_a_mask_is_as_long_as_what_it_is_added_to(mask, more) -> None:
    """Whether it covers the token in front is not to be told from the join, but from the scores."""
    model, samples = made(CLASS_IN_FRONT.replace("MASK", mask))
    assert total_length(model) is None
    assert sizes(samples, "x") == list(SIZES)
    assert sizes(samples, "attention_mask") == [size + more for size in SIZES]


def test_of_a_mask_that_meets_nothing_no_length_is_known() -> None:
    text = CLASS_IN_FRONT.replace("MASK", "mask = ReduceMax (attention_mask, one)")
    assert mask_lengths(model_of(text)) == {}


BOUNDED = """
g (float[batch, sequence, 16] x) => (float[batch, part, 16] y)
<float[16, 16] w, int64[1] zero = {0}, int64[1] end = {64}, int64[1] one = {1}> {
  h = MatMul (x, w)
  s = Slice (h, zero, end, one)
  c = Slice (s, zero, end, one)
  y = Relu (c)
}
"""


def test_one_sample_lies_beyond_the_bound_of_a_slice() -> None:
    model, samples = made(BOUNDED)
    assert largest_bound(model, 512) == 64
    assert max(sizes(samples, "x")) == 73


def test_a_slice_of_a_fixed_size_is_no_bound() -> None:
    text = BOUNDED.replace("int64[1] one = {1}", "int64[1] one = {2}")
    assert largest_bound(model_of(text), 512) == 0


AUDIO = """
g (float[batch, samples] x) => (float[batch, frames, 8] y)
<float[8, 1, 20] c1, float[8, 8, 20] c2, int64[1] one = {1}> {
  a = Unsqueeze (x, one)
  b = Conv <strides = [20]> (a, c1)
  c = Conv <strides = [16]> (b, c2)
  y = Transpose <perm = [0, 2, 1]> (c)
}
"""


def test_raw_audio_gets_enough_numbers_for_a_frame() -> None:
    _, samples = made(AUDIO)
    assert min(sizes(samples, "x")) >= 400
    assert len(set(sizes(samples, "x"))) >= 4


IMAGE = """
g (float[batch, channels, height, width] pixels) => (float[batch, patches, 8] y)
<float[8, 3, 16, 16] patch, float[1, SEEN, 8] places, int64[3] flat = {0, 8, -1}> {
  a = Conv <strides = [16, 16]> (pixels, patch)
  b = Reshape (a, flat)
  c = Transpose <perm = [0, 2, 1]> (b)
  y = Add (c, places)
}
"""


def test_an_image_has_the_channels_and_the_sides_that_the_model_takes() -> None:
    _, samples = made(IMAGE.replace("SEEN", "196"))
    assert {feed["pixels"].shape for feed in samples.feeds} == {(3, 224, 224)}
    _, samples = made(IMAGE.replace("SEEN", "1"))
    shapes = {feed["pixels"].shape for feed in samples.feeds}
    assert {shape[0] for shape in shapes} == {3}
    assert len(shapes) == 8
    assert all(height != width for _, height, width in shapes)


TIME_MAJOR = (
    "g (float[time, batch, 16] x) => (float[time, batch, 16] y) <float[16, 16] w> { y = MatMul (x, w) }"
)


def test_the_batch_of_a_time_major_input_is_its_second_axis() -> None:
    _, samples = made(TIME_MAJOR)
    assert sizes(samples, "x") == list(SIZES)
    assert samples.batch(range(3))["x"].shape == (24, 3, 16)
    given = Samples([{"x": np.full((4, 16), number)} for number in range(3)], axes=samples.axes)
    np.testing.assert_array_equal(given.batch([0, 2])["x"][0, :, 0], [0, 2])


def test_sizes_without_a_name_are_one_where_they_lie_on_one_axis() -> None:
    text = "g (float[batch, ?, 4] x, float[batch, ?, 4] z) => (float[batch, ?, 4] y) { y = Add (x, z) }"
    _, samples = made(text.replace("y = Add (x, z)", "s = Shape (x) r = Reshape (z, s) y = Add (x, r)"))
    assert sizes(samples, "x") == sizes(samples, "z") == list(SIZES)


@pytest.mark.parametrize("text", [TWO, AUDIO])
def test_they_are_the_same_again(text: str) -> None:
    first, second = (varied_samples(model_of(text)) for _ in range(2))
    for a, b in zip(first.feeds, second.feeds, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_mask_over_an_encoders_states_is_not_over_past_tokens() -> None:
    model = model_of("""
        step (float[batch, 1, 4] x, float[batch, past, 4] past_keys, float[batch, keys, 4] encoder_keys,
              int64[batch, states] encoder_attention_mask)
            => (float[batch, all, 4] y, float[batch, keys, 4] z)
        <int64[1] last = {-1}> {
            y = Concat <axis = 1> (past_keys, x)
            mask = Cast <to = 1> (encoder_attention_mask)
            column = Unsqueeze(mask, last)
            z = Mul(encoder_keys, column)
        }
    """)
    with Runner(model) as run:
        run(synthetic_samples(model, length=8).batch([0]))


def test_sizes_vary_where_the_model_fixes_how_many_samples_run_together() -> None:
    model = model_of("g (float[2, length, 16] x) => (float[2, length, 16] y) { y = Tanh (x) }")
    samples = varied_samples(model)
    assert sizes(samples, "x") == list(SIZES)
    with Runner(model) as run:
        for feed in samples.batches(8):
            assert run(feed)["y"].shape[0] == 2
