"""What one build did, and what each target made of the compressed model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.build.goals import CheckedGoal
from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model
from graphcompress.measure.answers import ChangedAnswer
from graphcompress.measure.bench import ShapeResult
from graphcompress.measure.invariance import Invariance
from graphcompress.measure.measured import Measured
from graphcompress.measure.metrics import Drop, Score
from graphcompress.measure.own_cache import OwnCache
from graphcompress.measure.verify import Difference
from graphcompress.pipeline.anatomy import Anatomy, PlaceError
from graphcompress.pipeline.contract_check import ModelSize
from graphcompress.pipeline.pipeline import PassRecord
from graphcompress.plugin.base import Lowering

if TYPE_CHECKING:
    from graphcompress.build.questions import Report


@dataclass(frozen=True)
class Artifact:
    """What one target made of the compressed model, and how it answers.

    Attributes:
        target: as the user would type it.
        folder: where it lies.
        size: all its files but the tokenizer.
        difference: its outputs, run by the target, against those of the model that came in.
        invariance: whether its answers depend on batch mates or padding.
        lowering: what the target says about its work.
        score: the task metric, when one was asked for.
        drop: how much worse that is than the metric of the model that came in.
        changed: answers that differ most from the original's.
        timed: whether times on this machine are those of the target's runtime.
        inputs: type and shape of every input in a sample, as its runtime takes it.
        own_cache: of a model that writes, how far it is from the one that came in after steps of its own.
    """

    target: str
    folder: Path
    size: ModelSize
    difference: Difference
    invariance: Invariance
    lowering: Lowering = field(default_factory=Lowering)
    score: Score | None = None
    drop: Drop | None = None
    changed: tuple[ChangedAnswer, ...] = ()
    timed: bool = True
    inputs: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    own_cache: OwnCache | None = None

    @property
    def name(self) -> str:
        """The target's name, without its options."""
        return self.target.partition("{")[0]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the target says about its work, as the manifest keeps it."""
        return self.lowering.record


@dataclass(frozen=True)
class Build:
    """What one build did.

    Attributes:
        output: folder of the artifact, or of one artifact per target.
        recipe: options that make it again, with the hashes of the files that were read.
        before: size of the model that came in.
        records: one per pass, in order.
        lowered: one artifact per target, in the order in which they were named.
        reference_invariance: whether the answers of the model that came in depend on batch mates or padding.
        score: the task metric of the model that came in, when one was asked for.
        goals: target → what was asked for, and whether the artifact has it.
        measured: times on this machine, where they were asked for.
        before_anatomy, anatomy: weights and blocks of the model that came in, and of the compressed one.
        depth: how far the output of every block is from the original's.
        samples: on which the outputs were compared.
        model: what the passes made of the model; ``model.path`` is the file of the one that came in.
    """

    output: Path
    recipe: Mapping[str, Any]
    before: ModelSize
    records: tuple[PassRecord, ...]
    lowered: tuple[Artifact, ...]
    reference_invariance: Invariance
    score: Score | None = None
    goals: Mapping[str, Sequence[CheckedGoal]] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured, repr=False)
    before_anatomy: Anatomy = field(default_factory=Anatomy, repr=False)
    anatomy: Anatomy = field(default_factory=Anatomy, repr=False)
    depth: tuple[PlaceError, ...] = field(default=(), repr=False)
    samples: Samples = field(default_factory=lambda: Samples([]), repr=False)
    model: Model | None = field(default=None, repr=False)

    @property
    def benched(self) -> Sequence[ShapeResult]:
        """Times at each shape, where they were asked for."""
        return self.measured.shapes

    def summary(self) -> str:
        """The result of every artifact, and a line for each pass."""
        from graphcompress.reporting.summary import pass_lines, result_lines, title

        told = []
        for artifact in self.lowered:
            lines = result_lines(self, artifact, self.benched)
            told += [title(self, artifact), *(f"  {topic:<8} {text}" for topic, text in lines)]
        return "\n".join([*told, *pass_lines(self)])

    def report(self) -> Report:
        """The report of the artifact; a notebook shows its page.

        Raises:
            UsageError: there are several artifacts; ask :func:`graphcompress.report` for one of them.
        """
        from graphcompress.build.questions import report

        return report(self.output)

    def plot(self) -> Plot:
        """Charts of what each pass brought and cost, which a notebook shows."""
        from graphcompress.build.report_file import charts

        return Plot(charts(self))

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(self.summary())}</pre>{self.plot()._repr_html_()}"


@dataclass(frozen=True)
class Plot:
    """Charts as SVG."""

    svg: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.svg
