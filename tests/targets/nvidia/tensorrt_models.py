"""Models, samples and a compiler that is not there, for the tests of tensorrt."""

import numpy as np
from graphs_int8 import ROWS

from graphcompress.data.load import Samples
from graphcompress.graph.runner import Runner


def ids(count=6, length=9):
    rng = np.random.default_rng(1)
    return Samples([{"ids": rng.integers(0, ROWS, length)} for _ in range(count)])


def activations(width, count=6, length=9):
    rng = np.random.default_rng(1)
    return Samples([{"x": rng.standard_normal((length, width)).astype(np.float32)} for _ in range(count)])


def outputs(model, samples):
    with Runner(model, optimize=False) as run:  # int8 products of this machine may saturate
        return run(samples.batch(range(len(samples))))["y"]
