"""Memory is bounded by one batch: how many samples run together follows the largest value of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from texts import model_of

from graphcompress.analysis.linears import linears
from graphcompress.data.samples import Samples
from graphcompress.measure import calibrate
from graphcompress.measure.calibrate import observe
from graphcompress.measure.memory import bounded, bytes_of, for_statistics, longest_needs, sizes_of
from graphcompress.numerics.observers import Activation

ENCODER = """
g (float[batch, LENGTH, 16] x) => (float[batch, LENGTH, 16] y)
<float[16, 16] q, float[16, 16] k, float[16, 16] o> {
  a = MatMul (x, q)
  b = MatMul (x, k)
  t = Transpose <perm = [0, 2, 1]> (b)
  s = MatMul (a, t)
  p = Softmax (s)
  c = MatMul (p, a)
  y = MatMul (c, o)
}
"""


def samples_of(*lengths: int) -> Samples:
    rng = np.random.default_rng(0)
    return Samples([{"x": rng.standard_normal((length, 16)).astype(np.float32)} for length in lengths])


@pytest.mark.parametrize("length", ["frames", "3000"])
@pytest.mark.parametrize(("longest", "together"), [(3000, 3), (6000, 1), (9000, 1), (100, None)])
def test_scores_decide_how_many_samples_run_together(length: str, longest: int, together: int | None) -> None:
    """Scores take 4 · 3000² = 36 MB, so that three samples stay below 128 MB."""
    if length == "3000" and longest != 3000:
        return
    model = model_of(ENCODER.replace("LENGTH", length))
    found = bounded(samples_of(7, longest), model)
    assert found.together == together
    assert found.batch_size(8) == (together or 8)


def test_sizes_are_those_of_the_longest_sample() -> None:
    model = model_of(ENCODER.replace("LENGTH", "frames"))
    sizes = sizes_of(model, samples_of(7, 30), 5)
    assert sizes == {"batch": 5, "frames": 30}
    scores = next(node.outputs[0] for node in model.graph if node.op_type == "Softmax")
    assert bytes_of(scores, sizes) == 5 * 30 * 30 * 4


def test_fixed_sizes_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run fetches all values of a model of fixed sizes where they fit; each needed its own before."""
    model = model_of(ENCODER.replace("LENGTH", "1500"))
    runs: list[int] = []

    class Counted(calibrate.Runner):
        def __init__(self, model, values, **options) -> None:
            runs.append(len(values))
            super().__init__(model, values, **options)

    monkeypatch.setattr(calibrate, "Runner", Counted)
    seen = {linear.input: Activation() for linear in linears(model)}
    observe(model, seen, samples_of(1500, 1500))
    assert runs == [len(seen)]
    assert all(activation.histogram.total == 2 * 1500 * 16 for activation in seen.values())


def test_a_long_sample_is_seen_in_windows() -> None:
    """20,000 frames make scores of 1.6 GB; four times 5,000 make 100 MB each."""
    model = model_of(ENCODER.replace("LENGTH", "frames"))
    samples = samples_of(30, 20_000)
    seen = for_statistics(samples, model)
    assert [len(feed["x"]) for feed in seen.feeds] == [30, 5_000, 5_000, 5_000, 5_000]
    assert np.array_equal(np.concatenate([feed["x"] for feed in seen.feeds[1:]]), samples.feeds[1]["x"])
    assert seen.batch_size(8) == 1


def test_windows_of_padding_alone_are_left_out() -> None:
    text = ENCODER.replace("LENGTH", "n").replace("] x)", "] x, int64[batch, n] mask)")
    mask = np.arange(20_000) < 7_000
    samples = Samples([{"x": samples_of(20_000).feeds[0]["x"], "mask": mask.astype(np.int64)}])
    seen = for_statistics(samples, model_of(text))
    assert [int(feed["mask"].sum()) for feed in seen.feeds] == [5_000, 2_000]


@pytest.mark.parametrize(
    "inputs", ["float[batch, 20000, 16] x", "float[batch, n, 16] x, int64[batch, m] other"]
)
def test_what_cannot_be_cut_stays_whole(inputs: str) -> None:
    model = model_of(ENCODER.replace("float[batch, LENGTH, 16] x)", f"{inputs})").replace("LENGTH", "n"))
    feed = {"x": samples_of(20_000).feeds[0]["x"], "other": np.ones(7, np.int64)}
    samples = Samples([{value.name: feed[value.name] for value in model.graph.inputs}])
    assert for_statistics(samples, model).feeds == samples.feeds


def test_a_sample_that_needs_much_is_told() -> None:
    model = model_of(ENCODER.replace("LENGTH", "n"))
    assert longest_needs(samples_of(30, 15_000), model) == ""
    assert longest_needs(samples_of(30, 20_000), model).startswith(
        "the longest sample makes a value of 1.6 GB"
    )


def test_kept_outputs_hold_no_memory_of_their_session() -> None:
    """The runtime's own arrays are views into it; copies are not."""
    model = model_of(ENCODER.replace("LENGTH", "n"))
    with calibrate.Runner(model) as runner, calibrate.Runner(model, lent=True) as lending:
        kept, lent = (run(samples_of(5).batch([0]))["y"] for run in (runner, lending))
    assert kept.flags.owndata
    assert kept.base is None
    assert np.array_equal(kept, lent)
