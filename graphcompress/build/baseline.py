"""The model as it came in: what everything that is made of it is compared with."""

from __future__ import annotations

from pathlib import Path

from graphcompress.analysis.cost import macs
from graphcompress.build.inputs import model_bytes
from graphcompress.files.scratch import on_disk
from graphcompress.generation.generator import Generator
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.invariance import batch_invariance
from graphcompress.measure.metrics import Scoring
from graphcompress.measure.reference import check_repeats
from graphcompress.measure.tokens import token_values
from graphcompress.pipeline.anatomy import Depth, Parts
from graphcompress.pipeline.contract_check import CHECK_BATCH, ModelSize, check_samples
from graphcompress.plugin.context import Context


class Baseline:
    """The model as it came in: its size, outputs, batch invariance, score and anatomy.

    ``file`` is what the user gave: ONNX Runtime runs it as it is, so that what reading it may have changed is
    compared, too. Without one, ``model`` itself is run. ``generator`` is scored by a metric of written texts.
    """

    def __init__(
        self,
        model: Model,
        ctx: Context,
        scoring: Scoring | None = None,
        file: Path | None = None,
        generator: Generator | None = None,
    ) -> None:
        self.file = file
        self.samples = check_samples(model, ctx)
        self.feeds = on_disk(self.samples.batches(CHECK_BATCH))
        self.by_token = token_values(model)
        # Packed weights are a second copy of them, which pays where a metric runs many rows.
        with Runner(file or model, prepack=scoring is not None) as runner:
            asked = {value.name for value in model.graph.outputs}
            self.outputs = on_disk(
                {name: array for name, array in runner(feed).items() if name in asked} for feed in self.feeds
            )
            check_repeats(model, runner, self.feeds[0], self.outputs[0])
            self.invariance = batch_invariance(runner, self.samples)
            self.score = scoring.original(generator or runner) if scoring else None
            self.parts = Parts(model)
            self.size = ModelSize(model.parameters, model_bytes(model) or runner.bytes_on_disk, macs(model))
        # After the session above is closed: each of the two holds all weights.
        self.depth = Depth(model, self.samples)
