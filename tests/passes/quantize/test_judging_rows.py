"""What int8 is judged by: whole rows of the data, none of which calibration sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sequence_models import random_texts
from texts import model_of

from graphcompress.analysis.linears import linears
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import sequence_samples
from graphcompress.files.parts import handed_on
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure import memory
from graphcompress.numerics.metrics import divergences
from graphcompress.numerics.quantise import PerToken
from graphcompress.passes.quantize.calibration import JUDGING_SAMPLES, split
from graphcompress.passes.quantize.decide import LinearForm, Plan
from graphcompress.passes.quantize.judge import Judge
from graphcompress.passes.quantize.lowbit import low_bit_linear
from graphcompress.passes.quantize.write import write
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


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


def test_an_encoder_is_judged_by_what_decoders_say_of_its_states(sequence_folders: dict[str, Path]) -> None:
    model = Model.load(sequence_folders["bart"])
    samples = sequence_samples(model, random_texts("bart", 3))
    parts = {part.role: part for part in model.parts}
    prefix = parts["encoder"].prefix
    encoder = [linear for linear in linears(model) if (linear.node.outputs[0].name or "").startswith(prefix)]
    plan = Plan([LinearForm(one, low_bit_linear(one, "8bit"), PerToken(), 0.0, 0.0) for one in encoder], [])
    found = Judge(model, samples, Context(), np.inf, 1.0).error(plan)
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        write(rw, plan.on(twin))
    links = handed_on(model.parts)
    states = prefix + (parts["encoder"].output("states") or "")
    lost: dict[str, list[np.ndarray]] = {}
    with Runner(model) as exact, Runner(twin) as rounded:
        for feed in samples.batches(1):
            answered = rounded(feed)[states]
            handed = {name: answered for output, name in links if output == states}
            scores = [exact(feed), exact({**feed, **handed})]
            for name in (name for name in scores[0] if name.endswith("logits")):
                lost.setdefault(name, []).append(divergences(*(each[name][0] for each in scores)))
    assert found == pytest.approx(max(np.concatenate(rows).mean() for rows in lost.values()), rel=1e-3)
    assert found > 1e-6
