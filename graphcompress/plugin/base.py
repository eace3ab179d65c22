"""A pass and a target, two of the things that can be added: what each is given and promises."""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from graphcompress.errors import UsageError
from graphcompress.plugin.options import check_options, format_call, renamed
from graphcompress.plugin.schemes import INT8, UINT8, Scheme, common_schemes, described, integer_products

if TYPE_CHECKING:
    from pathlib import Path

    from graphcompress.data.load import Samples
    from graphcompress.graph.model import Model
    from graphcompress.measure.verify import Difference, OutputDifference, Run
    from graphcompress.plugin.task import Metric


ROUNDINGS = 4
"""Outputs of an exact pass may differ by this many roundings of the coarsest float type."""

HELD_OUT_SHARE, HELD_OUT_ROWS = 0.05, 512
"""Part of the samples to train on that is held out where a user gives no others; at most so many rows."""


@dataclass(frozen=True)
class Exact:
    """Outputs stay the same up to the order of floating-point additions.

    ``atol`` is in units of the largest output of the reference, so that it means the same for every model. A
    model that computes in half precision rounds by more than that: there a few roundings are allowed.
    """

    atol: float = 1e-4

    def broken_by(self, difference: Difference, epsilon: float = 0.0) -> str | None:
        """Why ``difference`` breaks this, or None; ``epsilon`` is the rounding of the coarsest float type."""
        allowed = max(self.atol, ROUNDINGS * epsilon)
        if difference.max_relative_error <= allowed:
            return None
        worst = _worst(difference.outputs, lambda output: -output.max_relative_error)
        return (
            f"largest error {difference.max_relative_error:.2e} of the output range{worst}, "
            f"promised {allowed:.0e}"
        )

    def __str__(self) -> str:
        return f"exact (largest error {self.atol:.0e} of the output range)"


@dataclass(frozen=True)
class Lossy:
    """Outputs keep at least this signal-to-quantisation-noise ratio."""

    min_sqnr_db: float

    def broken_by(self, difference: Difference, epsilon: float = 0.0) -> str | None:
        """Why ``difference`` breaks this contract, or None."""
        if difference.sqnr_db >= self.min_sqnr_db:
            return None
        worst = _worst(difference.outputs, lambda output: output.sqnr_db)
        return f"SQNR {difference.sqnr_db:.1f} dB{worst}, promised at least {self.min_sqnr_db:.0f} dB"

    def __str__(self) -> str:
        return f"lossy (SQNR at least {self.min_sqnr_db:.0f} dB)"


def _worst(outputs: Sequence[OutputDifference], goodness: Callable[[OutputDifference], float]) -> str:
    """Which of several outputs a figure is of."""
    return f" (output {min(outputs, key=goodness).name!r})" if len(outputs) > 1 else ""


Contract = Exact | Lossy


@dataclass(frozen=True)
class Capabilities:
    """What a target can run; passes read it, so that they write nothing that the target refuses.

    Attributes:
        schemes: of quantisation, the better ones first.
        constant_expressions: weights may be expressions over what is stored; the target folds or lowers them.
    """

    schemes: tuple[Scheme, ...] = integer_products(UINT8, INT8, dynamic=True)
    constant_expressions: bool = True

    @property
    def judged_fused(self) -> bool:
        """Whether fused int8 products of any machine answer like the target's.

        Where all 8 bits of weights are in use those of x86 without VNNI saturate; such models are judged with
        nothing fused, so that the products are computed in float.
        """
        return not any(scheme.weights is not None and scheme.weights.bits == 8 for scheme in self.schemes)

    def __str__(self) -> str:
        weights = "stored or expressions" if self.constant_expressions else "stored as they are"
        return f"{described(self.schemes) or 'floats alone'}; weights {weights}"

    def choose(self, wanted: Sequence[Scheme]) -> Scheme | None:
        """Of the schemes ``wanted`` the one that the target runs best, or None where it runs none of them."""
        return next((each for runs in self.schemes for each in wanted if runs.includes(each)), None)

    def common(self, other: Capabilities) -> Capabilities:
        """What both targets can run."""
        return Capabilities(
            common_schemes(self.schemes, other.schemes),
            constant_expressions=self.constant_expressions and other.constant_expressions,
        )


class Progress(Protocol):
    """Reports long work; the command line draws a bar, a library call draws nothing."""

    def __call__(self, text: str, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` steps of the work called ``text`` are finished; ``detail`` tells more."""


def no_progress(text: str, done: int, total: int, detail: str = "") -> None:
    """The progress of a library call: silence."""


@dataclass(frozen=True)
class Training:
    """What a pass that trains learns from.

    Attributes:
        samples: to train on; labels, where there are any, are in their columns.
        teacher: whose answers are learned; None for the model as it came in.
        held_out: to evaluate on, and to judge contracts on; None for a part of ``samples``.
        metric: the task metric that is evaluated; None for the loss itself.
        folder: for checkpoints, from which an interrupted run goes on and which say that a run is done; None
            for none.
    """

    samples: Samples
    teacher: Model | None = None
    held_out: Samples | None = None
    metric: Metric | None = None
    folder: Path | None = None

    def divided(self) -> tuple[Samples, Samples]:
        """Samples to train on, and samples to evaluate and to judge the result on."""
        if self.held_out is not None:
            return self.samples, self.held_out
        return self.samples.held_out(HELD_OUT_SHARE, HELD_OUT_ROWS)


@dataclass(frozen=True)
class Touched:
    """One weight that a pass rewrote: its name, its parameters before, and figures worth reporting."""

    name: str
    parameters: int
    detail: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """One thing that a pass left alone, and why; ``figures`` hold what was measured before deciding."""

    name: str
    reason: str
    parameters: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What a pass did: the weights that it rewrote, the things that it left alone, and notes for the user.

    ``curves`` hold what was evaluated while something was learned: its name → steps and values.
    """

    touched: tuple[Touched, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a pass is given besides the model: samples, capabilities of the target, a seed.

    Attributes:
        samples: calibration samples of the user, or None: a pass works without and says what it would gain.
        capabilities: of the target that the result is for.
        seed: for everything random.
        progress: called on long work.
        training: what a pass that trains learns from, or None.
        original: the model as it came in, kept (its weights on disk) where a later pass trains, else None.
        pinned: target as the user would type it → the record of an earlier lowering that is to be made again.
        spent: share of the drop allowed to the task metric that a model takes which runs like this; above 1
            is too much; None where no drop is bounded.
    """

    samples: Samples | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    seed: int = 0
    progress: Progress = no_progress
    training: Training | None = None
    original: Model | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)
    spent: Callable[[Run], float] | None = None


class _Renaming(abc.ABCMeta):
    """Lets the constructor of a dataclass of options take their deprecated names, too."""

    def __call__(cls, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (the options of any dataclass)
        known, deprecated = renamed(cls, getattr(cls, "name", cls.__name__), options)
        made = super().__call__(*args, **known)
        if deprecated:
            object.__setattr__(made, "deprecated", deprecated)
        return made


@dataclass(frozen=True)
class Named(metaclass=_Renaming):
    """A frozen dataclass whose fields are its options and whose text is what the user types.

    Attributes:
        deprecated: a note for every option that was given under a deprecated name.
    """

    name: ClassVar[str]
    also_called: ClassVar[Mapping[str, str]] = {}
    """Words that a user may know it by → what to type instead."""
    deprecated: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self.name, self)

    def __str__(self) -> str:
        return format_call(self.name, self)

    def refuse_idle(self, names: str, why: str) -> None:
        """Refuse the options of ``names`` that are not at their defaults, where they would change nothing.

        Raises:
            UsageError: one is not; it says ``why`` it would change nothing.
        """
        for each in fields(self):
            if each.name in names.split() and getattr(self, each.name) != each.default:
                raise UsageError(f"{self}: {each.name} would change nothing, because {why}")

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring: what it does."""
        return (inspect.getdoc(cls) or "").partition("\n")[0]

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """What the reference says about it besides: a heading in a few words → what stands there."""
        return {}

    @classmethod
    def usage(cls) -> tuple[str, ...]:
        """Lines of Python that use what it makes, without this package."""
        return ()


@dataclass(frozen=True)
class Pass(Named, abc.ABC):
    """Edits the graph of a model in place and promises how much the outputs may change.

    A subclass is a frozen dataclass: fields are options (see :func:`graphcompress.option`), the docstring is
    the reference page. Every edit goes through a :class:`graphcompress.Rewriter`.
    """

    contract: ClassVar[Contract]
    trains: ClassVar[bool] = False
    """Whether it makes good what lossy passes before it cost: they are judged by their contracts after it."""
    goes_first: ClassVar[bool] = False
    """Whether it runs first by itself where a pipeline does not name it: the others expect what it leaves."""

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """Its contract."""
        return {"contract": str(cls.contract)}

    def unsupported(self, capabilities: Capabilities, *, calibrated: bool) -> str | None:
        """What these options ask for that a target cannot run, and which option to change; None: nothing.

        Asked before any work; ``calibrated`` says whether there are samples of the user.
        """
        return None

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse what these options lack: samples of the user, if not ``calibrated``, or a package.

        Called before any file is read.
        """

    def check_model(self, model: Model) -> None:
        """Refuse a model that this pass can do nothing with; called before any work."""

    def check(self, model: Model, ctx: Context) -> None:
        """Refuse what :meth:`run` would fail on; called before the first pass that is not exact works."""

    @abc.abstractmethod
    def run(self, model: Model, ctx: Context) -> Record:
        """Rewrite ``model`` in place; return what was touched, and what was left alone and why.

        A pass returns the ``record`` of its Rewriter.
        """


@dataclass(frozen=True)
class Lowering:
    """What a target did with a model, for the report and for the manifest of the artifact.

    Attributes:
        notes: sentences for a reader of the report.
        proof: what ran the artifact when its outputs were compared; None: the runtime that it is for.
        forms: the forms that operators were given, in words; None of a target that does not choose any.
        deployed_bytes: how much one device gets; None: all files of the artifact.
        details: what else the manifest keeps; names that end in ``_ms`` are times, which it does not.
        measured: whether measurements decided about the files; the recipe then holds the record, and the
            target makes the same again from :attr:`Context.pinned`, on any machine.
    """

    notes: tuple[str, ...] = ()
    proof: str | None = None
    forms: str | None = None
    deployed_bytes: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    measured: bool = False

    @property
    def record(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        told = {"proof": self.proof, "forms_text": self.forms, "deployed_bytes": self.deployed_bytes}
        known = {name: value for name, value in told.items() if value is not None}
        return {**self.details, "notes": list(self.notes), **known}


@dataclass(frozen=True)
class Target(Named, abc.ABC):
    """Lowers a model for one runtime, writes its files and runs them there.

    What else is asked of a target, it declares: each of these has a default.
    """

    _file: ClassVar[str] = "model.onnx"

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """What it can run with its default options."""
        return {"capabilities": cls().capabilities}

    @classmethod
    def usage(cls) -> tuple[str, ...]:
        """:attr:`loading`, with the default options."""
        return cls().loading

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What the runtime can execute."""

    @property
    def timed(self) -> bool:
        """Whether times of :meth:`session` on this machine are those of the runtime it is for."""
        return True

    @property
    def model_file(self) -> str:
        """Name of the file in the artifact that holds the model."""
        return self._file

    def named(self, file: str) -> Self:
        """The same target, whose artifact is one ONNX file with the name ``file``: one part of several."""
        twin = copy.copy(self)
        object.__setattr__(twin, "_file", file)
        return twin

    @property
    def files_read(self) -> tuple[str, ...]:
        """Paths of files that the options name and that decide what is made: a recipe holds their hashes."""
        return ()

    @property
    def tuned_at(self) -> Sequence[tuple[int, int]]:
        """Batch and length of every shape that :meth:`tune` measures at; none: nothing is measured."""
        return ()

    @property
    def loading(self) -> tuple[str, ...]:
        """Lines of Python that make ``session`` in the folder of an artifact, without this package."""
        return ("import onnxruntime", f'session = onnxruntime.InferenceSession("{self.model_file}")')

    def runs_on_cpu_provider(self, folder: Path) -> bool:
        """Whether ONNX Runtime's CPU provider alone runs the artifact, and the model is an ONNX file."""
        return False

    def interface(self, folder: Path) -> Model | None:
        """Inputs and outputs of an artifact, as a model without a node; None: the model is an ONNX file."""
        return None

    def check(self) -> None:
        """Fail, before any work, when this machine lacks what :meth:`lower` is asked to use."""
        return None

    def check_model(self, model: Model) -> None:
        """Fail, before any work, when the options do not fit the model that came in."""
        return None

    @abc.abstractmethod
    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write the files of the artifact into ``folder``, which exists; ``model`` itself is not changed."""

    @abc.abstractmethod
    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """A function from a feed (input name → array) to outputs (name → array), run by the real runtime."""

    def tune(self, model: Model, ctx: Context) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """Times, in ms, of what :meth:`lower` would choose between in ``model``, measured on this machine."""
        return {}


def parameters_of(items: Iterable[Touched | Skipped]) -> int:
    """Sum of the parameters of ``items``."""
    return sum(item.parameters for item in items)
