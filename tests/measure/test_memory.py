"""Memory is bounded by one batch: how many samples run together follows the largest value of the graph."""

from __future__ import annotations

import numpy as np
import pytest
from texts import model_of

from graphcompress.analysis.linears import linears
from graphcompress.data.samples import Samples
from graphcompress.measure import calibrate
from graphcompress.measure.calibrate import observe
from graphcompress.measure.memory import bounded, bytes_of, sizes_of
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
