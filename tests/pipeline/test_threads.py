"""The bytes of a result do not depend on how many threads BLAS has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = """
import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from bert import Bert
from conftest import random_samples
from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.record import Record
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class Solve(Pass):
    "Replace a weight by the solution of equations so ill-conditioned that its last bits are seen."

    name: ClassVar[str] = "solve"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=-1000.0)

    def run(self, model: Model, ctx: Context) -> Record:
        with Rewriter(model, ctx) as rw:
            linear = next(each for each in linears(model) if "layer.0.output" in each.name)
            index = np.arange(1.0, linear.in_features + 1)
            solved = np.linalg.solve(1 / (index[:, None] + index), linear.dense().astype(np.float64))
            rw.overwrite(linear.weight, 0.1 * solved / np.abs(solved).max())
        return rw.record


passes = (Solve(), *Pipeline.parse("kron{ratio=0.5},prune{ffn=0.25}").passes)
model = Model(ir.from_proto(Bert(layers=1, hidden=128, ffn=512).model()))
Pipeline(passes).run(model, Context(samples=random_samples(40)), allow=("solve", "kron", "prune"))
for value in sorted(model.initializers(), key=lambda value: value.name):
    print(value.name, hashlib.sha256(value.const_value.numpy().tobytes()).hexdigest())
"""


def built(threads: int) -> list[str]:
    """Name and hash of every stored array, built with so many threads for BLAS."""
    environment = {
        **os.environ,
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", BUILD], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_one_and_two_threads_give_the_same_bytes() -> None:
    one, two = built(1), built(2)
    assert len(one) > 30
    assert one == two
