"""What the checks look at: one export, its model raw and simplified, feeds, and outputs by ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.data.made_up import synthetic_samples
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, UnsupportedModelError
from graphcompress.files.runtime import CONTRIB
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import rounding
from graphcompress.plugin.context import Context
from matrix.exports import Export

SIZES = (
    {"batch": 1, "sequence": 5, "past": 3, "source": 9, "texts": 2},
    {"batch": 3, "sequence": 12, "past": 7, "source": 4, "texts": 1},
    {"batch": 2, "sequence": 1, "past": 11, "source": 6, "texts": 3},
)
"""Other batch sizes and lengths than those of the export."""

EXACT = 1e-4
"""Of the output range, as the contract of an exact pass has it for float32."""

Outputs = list[dict[str, np.ndarray]]


class NotHeldError(Exception):
    """A check does not hold; the message says by how much."""


@dataclass(frozen=True)
class Subject:
    """One export under examination; every check takes models of its own from it."""

    export: Export
    _made: dict[str, bytes] = field(default_factory=dict)

    def load(self) -> Model:
        """The model as it came."""
        return Model.load(self.export.path)

    def analysed(self) -> list[Model]:
        """The models in which everything is to be found: what is inside fused operators only simplified."""
        raw = self.load()
        fused = any(node.domain == CONTRIB for node in raw.graph)
        return [self.simplified()] if fused else [raw, self.simplified()]

    def simplified(self) -> Model:
        """The model after ``simplify``, as every pass meets it."""
        return self._simplified.clone()

    @cached_property
    def _simplified(self) -> Model:
        model = self.load()
        Simplify().run(model, Context())
        return model

    @cached_property
    def feeds(self) -> list[dict[str, np.ndarray]]:
        """One feed for each of :data:`SIZES`, and one without past where there is one."""
        architecture = self.export.architecture
        sizes = [*SIZES]
        if "past" in architecture.symbols:
            sizes.append({**SIZES[0], "past": 0})
        return [
            self._typed(architecture.feed(10 + seed, **{**size, **self._fixed}))
            for seed, size in enumerate(sizes)
        ]

    @cached_property
    def _fixed(self) -> dict[str, int]:
        """Sizes that this form does not leave open."""
        return {"batch": 1, "texts": 1} if self.export.variant.form == "batch fixed to 1" else {}

    def _typed(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The feed in the types of the graph's inputs, without inputs that the exporter dropped."""
        kinds = {value.name: value.dtype for value in self.load().graph.inputs}
        typed = {}
        for name, kind in kinds.items():
            if name in feed and kind is not None:
                floats = feed[name].dtype.kind == "f"
                typed[name] = feed[name].astype(kind.numpy()) if floats else feed[name]
        return typed

    @cached_property
    def exact(self) -> float:
        """Error that an exact pass may have, of the output range."""
        return max(EXACT, 4 * rounding(self.load()))

    @cached_property
    def refusal(self) -> str:
        """Why the library refuses the model by name; empty when it does not."""
        try:
            refuse_unsupported(self.load(), [Simplify()])
        except UnsupportedModelError as error:
            return f"refused: {str(error).replace(str(self.export.path), 'the model')}"
        return ""

    @cached_property
    def expected(self) -> Outputs:
        """What the export gives on the feeds."""
        return run(self.load(), self.feeds)

    @cached_property
    def obstacle(self) -> str:
        """Why the export itself does not run at :data:`SIZES`; empty when it does."""
        try:
            self.expected  # noqa: B018 (computed for what it raises)
        except DataError as error:
            said = str(error).partition("Status Message: ")[2] or str(error)
            return f"ONNX Runtime cannot run the export itself at other sizes: {said.partition(';')[0]}"
        return ""

    @cached_property
    def samples(self) -> Samples:
        """Calibration samples: single rows of feeds."""
        architecture = self.export.architecture
        feeds = []
        for seed in range(24):
            one = architecture.feed(100 + seed, batch=1, texts=1, sequence=4 + seed % 9)
            feeds.append({name: array[0] for name, array in self._typed(one).items()})
        return Samples(feeds, fixed=synthetic_samples(self.load(), count=1).fixed)

    def once(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What ``make`` gives, made when it is first asked for."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def calls(self) -> dict[str, Counter[tuple[int, ...]]]:
        """Sizes of the linears and embeddings that the source calls."""
        return {kind: Counter(map(tuple, sizes)) for kind, sizes in self.export.calls.items()}


class Answers(list[dict[str, np.ndarray]]):
    """Outputs for each feed, and what a cut has left of them (of caches), as in ``Model.kept``."""

    def __init__(
        self, outputs: Iterable[dict[str, np.ndarray]], kept: Mapping[str, Mapping[int, np.ndarray]]
    ):
        super().__init__(outputs)
        self.kept = kept

    def left_of(self, name: str, array: np.ndarray) -> np.ndarray:
        """The part of an output of the model before the cut that this model still gives."""
        for axis, index in self.kept.get(name, {}).items():
            array = np.take(array, index, axis) if array.shape[axis] > len(index) else array
        return array


def run(model: Model, feeds: Sequence[Mapping[str, np.ndarray]]) -> Answers:
    """Outputs of ``model`` for each feed."""
    with Runner(model) as runner:
        return Answers([runner(feed) for feed in feeds], model.kept)


def largest_error(expected: Outputs, actual: Outputs) -> float:
    """Largest difference over the largest value of that output; infinite where NaN or shapes differ."""
    worst = 0.0
    if isinstance(actual, Answers):
        expected = [{name: actual.left_of(name, array) for name, array in one.items()} for one in expected]
    for one, other in zip(expected, actual, strict=True):
        if one.keys() != other.keys():
            return np.inf
        for name in one:
            array, found = one[name].astype(np.float64), other[name].astype(np.float64)
            if found.shape != array.shape or not np.array_equal(np.isnan(found), np.isnan(array)):
                return np.inf
            scale = float(np.nanmax(np.abs(array), initial=0.0)) or 1.0
            worst = max(worst, float(np.nanmax(np.abs(found - array), initial=0.0)) / scale)
    return worst
