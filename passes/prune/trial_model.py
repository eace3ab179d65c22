"""A model whose readers of blocks are inputs: what it answers without units needs no new session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, bias_of, linears
from graphcompress.cutting.excerpt import behind, between, needed_for
from graphcompress.cutting.stages import Stages
from graphcompress.data.load import Samples
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import equal_feeds
from graphcompress.measure.loss import OutputLoss, rows_read
from graphcompress.measure.tokens import token_values, without_padding
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import Block
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

JUDGED_ROWS = 2000
"""What removals do to the outputs is seen on so many of their rows (scores of a token, of a class): a mean of
squares is right to a twentieth where squares spread by twice their mean."""


class TrialModel:
    """A copy of a model in which every block's reader has weight and bias [in, out], [out] from outside.

    A unit is gone where its rows are zero: nothing else is different from the model that is cut, for blocks
    whose units end in their readers alone.
    """

    def __init__(self, model: Model, blocks: Sequence[Block], samples: Samples) -> None:
        self.feeds = equal_feeds(model, samples)
        self.twin = model.clone()
        self.readers: dict[Block, list[Linear]] = {}
        """The readers of every block in the copy, as they were before: what they read is theirs."""
        pairs = zip(linears(model), linears(self.twin), strict=True)
        same = {linear.node: twin for linear, twin in pairs}  # by position: nodes may have no names
        self.fits: dict[Block, LinearMap] = {}
        with Rewriter(self.twin, Context()) as rw:
            for number, block in enumerate(blocks):
                first = block.reader
                self.fits[block] = LinearMap(first.dense().astype(np.float64), bias_of(first))
                self.readers[block] = [same[reader.node] for reader in block.readers]
                given = [
                    _input(rw, f"trial.{number}.{part}", first, shape)
                    for part, shape in (
                        ("weight", [first.in_features, first.out_features]),
                        ("bias", [first.out_features]),
                    )
                ]
                for reader in self.readers[block]:
                    at = rw.at(reader.node, f"trial.{number}")
                    product = at.op("MatMul", reader.input, given[0], name="product")
                    rw.replace(reader.output, at.op("Add", product, given[1], name="sum"))
        self._names = {block: f"trial.{number}" for number, block in enumerate(blocks)}

    def weight_name(self, block: Block) -> str:
        """The input that is the weight of a block's reader."""
        return f"{self._names[block]}.weight"

    def inputs(self, block: Block) -> list[ir.Value]:
        """Those that are weight and bias of a block's reader."""
        names = {f"{self._names[block]}.weight", f"{self._names[block]}.bias"}
        return [value for value in self.twin.graph.inputs if value.name in names]

    def given(self, fits: Mapping[Block, LinearMap]) -> Feed:
        """The inputs that stand for ``fits``; blocks without one are as they were."""
        found: dict[str, np.ndarray] = {}
        for block, before in self.fits.items():
            fit = fits.get(block, before)
            dtype = (block.reader.output.dtype or ir.DataType.FLOAT).numpy()
            found[self.weight_name(block)] = fit.weight.astype(dtype)
            found[f"{self._names[block]}.bias"] = fit.bias.astype(dtype)
        return found


class Effect:
    """What pruning changes in the outputs of a model, on samples that no fit has seen."""

    def __init__(self, trial: TrialModel, wider: Effect | None = None) -> None:
        """``wider`` is that of the model that ``trial`` was narrowed from, on the same samples."""
        self.trial = trial
        self._per_token = token_values(trial.twin)
        self._runner = Runner(trial.twin)
        # They come shortest first, and not all may be judged by.
        order = np.random.default_rng(0).permutation(len(trial.feeds))
        trial.feeds = [trial.feeds[index] for index in order]
        self._before = on_disk(self._answers())
        trial.feeds = trial.feeds[: len(self._before)]
        self._loss = OutputLoss(self._before)
        self.aim: tuple[Sequence[Feed], OutputLoss] = (
            (self._before, self._loss) if wider is None else wider.aim
        )
        """What the outputs are held against, and by which distance."""

    def _answers(self) -> Iterator[Feed]:
        """What the model as it is answers to so many samples as it takes."""
        rows = 0
        for feed in self.trial.feeds:
            if rows >= JUDGED_ROWS:
                return
            found = without_padding(self.run({}, feed), feed, self._per_token)
            yield found
            rows += rows_read(found)

    def __call__(self, fits: Mapping[Block, LinearMap]) -> float:
        """What the outputs lose; of a narrowed model against the one before."""
        given, (original, loss) = self.trial.given(fits), self.aim
        return sum(
            loss(without_padding(self._runner({**feed, **given}), feed, self._per_token), before, loss.read)
            for feed, before in zip(self.trial.feeds, original, strict=True)
        )

    def told(self, loss: float) -> str:
        """A sentence about what is lost."""
        return self.aim[1].told(loss)

    def one_by_one(self, blocks: Sequence[Block]) -> Iterator[Callable[[LinearMap], float]]:
        """For each of ``blocks``, which are in the order of execution, what its fit alone changes."""
        twin = self.trial.twin
        varying = behind(twin, twin.graph.inputs)
        moved = [behind(twin, self.trial.inputs(block)) for block in blocks]
        named = {value.name or "": value for value in twin.graph.outputs}
        changed = [
            [named[name] for name in self._loss.of_interest(name for name in named if named[name] in mine)]
            for mine in moved
        ]
        entries = [
            [value for value in needed_for(outputs, varying - mine) if not value.is_graph_input()]
            for outputs, mine in zip(changed, moved, strict=True)
        ]
        stages = Stages(twin, self.trial.feeds, entries)
        for block, outputs, known in zip(blocks, changed, entries, strict=True):
            entered = on_disk(stages.next(self.trial.given({})))
            if not outputs:
                yield lambda fit: 0.0
                continue
            needed, part = between(twin, set(known), outputs)
            with Runner(part) as runner:
                yield self._of_one(block, runner, [value.name or "" for value in needed], entered)

    def _of_one(
        self, block: Block, runner: Runner, names: Sequence[str], entered: Sequence[Feed]
    ) -> Callable[[LinearMap], float]:
        """What a fit of ``block`` changes, by what ``runner`` computes from its inputs ``names``."""

        def changes(fit: LinearMap) -> float:
            given = self.trial.given({block: fit})
            total = 0.0
            for feed, inner, before in zip(self.trial.feeds, entered, self._before, strict=True):
                outer = {**self.trial.twin.fitted({**feed, **given}), **inner}
                found = runner({name: outer[name] for name in names})
                after = without_padding(found, feed, self._per_token)
                total += self._loss(after, before, after)
            return total

        return changes

    def run(self, fits: Mapping[Block, LinearMap], feed: Feed) -> Mapping[str, np.ndarray]:
        """What the model answers to ``feed`` with ``fits``."""
        return self._runner({**feed, **self.trial.given(fits)})


def whole(block: Block, rows: np.ndarray, fit: LinearMap) -> LinearMap:
    """A fit of the features ``rows`` that stay as one of all features: the others are multiplied by zero."""
    weight = np.zeros((block.reader.in_features, fit.weight.shape[1]))
    weight[rows] = fit.weight
    return LinearMap(weight, fit.bias)


def _input(rw: Rewriter, name: str, like: Linear, shape: Sequence[int]) -> ir.Value:
    value = ir.Value(
        name=name, shape=ir.Shape(shape), type=ir.TensorType(like.output.dtype or ir.DataType.FLOAT)
    )
    rw.model.graph.inputs.append(value)
    return value
