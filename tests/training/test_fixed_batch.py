"""Training a model that fixes how many samples run together."""

from __future__ import annotations

import numpy as np
import pytest
from texts import model_of

pytest.importorskip("torch")

from graphcompress.data.samples import Samples
from graphcompress.errors import UnsupportedModelError
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training

TEXT = """
g (float[2, length, 16] x) => (float[2, length, 16] y)
<float[16, 32] up, float[32, 16] down, int64[3] apart = {2, -1, 16}> {
  wide = MatMul (x, up)
  active = Relu (wide)
  narrow = MatMul (active, down)
  y = LAST
}
"""


def trained(last: str, fixed: int | None = 2, rows: int = 12) -> tuple[str, ...]:
    """Train for four steps, in batches of three, a model that ends in ``last``; the notes of the training."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((5, 16)).astype(np.float32)} for _ in range(rows)]
    samples = Samples(feeds, fixed={"x": (fixed, None, 16)})
    context = Context(samples=samples, training=Training(samples))
    pipeline = Pipeline.parse("kron{rank=1},distill{steps=4 batch=3 outputs=1}")
    text = TEXT.replace("LAST", last).replace("[2, length", f"[{fixed or 'batch'}, length")
    return pipeline.run(model_of(text), context, allow=["kron", "distill"])[-1].notes


def test_another_batch_is_trained_where_the_graph_takes_it() -> None:
    trained("Tanh (narrow)")


def test_a_graph_that_takes_one_batch_alone_is_refused(capsys) -> None:
    with pytest.raises(UnsupportedModelError, match="runs on 2 samples at a time alone"):
        trained("Reshape (narrow, apart)")
    assert capsys.readouterr().err == ""


def test_what_fills_a_batch_up_is_not_learned() -> None:
    """Eleven samples in batches of three, of a model that takes two: the last of them are no pairs."""
    notes = {trained("Tanh (narrow)", fixed=fixed, rows=11) for fixed in (2, None)}
    assert len(notes) == 1
