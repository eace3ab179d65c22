"""What int8 is judged by: whole rows of the data, none of which calibration sees."""

from __future__ import annotations

import numpy as np
import pytest
from texts import model_of

from graphcompress.data.samples import Samples
from graphcompress.measure import memory
from graphcompress.passes.quantize.calibration import JUDGING_SAMPLES, split
from graphcompress.passes.quantize.decide import Plan
from graphcompress.passes.quantize.judge import Judge
from graphcompress.plugin.context import Context


@pytest.mark.parametrize(("rows", "per_row"), [(16, 2), (40, 1), (300, 2), (300, 1)])
def test_what_belongs_to_one_row_is_judged_together(rows: int, per_row: int) -> None:
    """Every other sample of a model that writes is a step: judged one by one, no step would be seen."""
    samples = Samples([{"x": np.array([index])} for index in range(rows * per_row)], per_row=per_row)
    calibrating, judging = ([int(feed["x"][0]) for feed in part.feeds] for part in split(samples))
    assert sorted([*calibrating, *judging]) == list(range(rows * per_row))
    assert len(judging) == min(JUDGING_SAMPLES, -(-rows // 8) * per_row)
    assert all(
        {row * per_row + one for one in range(per_row)} <= set(judging)
        for row in {i // per_row for i in judging}
    )


def test_a_handful_serves_for_both() -> None:
    samples = Samples([{"x": np.array([index])} for index in range(30)], per_row=2)
    calibrating, judging = split(samples)
    assert calibrating is judging is samples


def test_a_long_sample_is_judged_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that changes nothing has no error, on samples of which one is too long to run at once."""
    monkeypatch.setattr(memory, "LARGEST_BYTES", 4 * 128**2)
    model = model_of(
        """
        g (float[batch, n, 4] x) => (float[batch, n, 4] y) {
          t = Transpose <perm = [0, 2, 1]> (x)
          s = MatMul (x, t)
          p = Softmax (s)
          y = MatMul (p, x)
        }
        """
    )
    rng = np.random.default_rng(0)
    samples = Samples([{"x": rng.standard_normal((length, 4)).astype(np.float32)} for length in (30, 300)])
    assert Judge(model, samples, Context(), 0.1, 0.1).error(Plan([], [])) < 1e-8
