"""A pass and a target, two of the things that can be added: what each is asked and promises."""

from __future__ import annotations

import abc
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from graphcompress.errors import UsageError
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract
from graphcompress.plugin.options import check_options, format_call, renamed
from graphcompress.plugin.record import Record

if TYPE_CHECKING:
    from pathlib import Path

    from graphcompress.graph.model import Model


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

    @property
    def files_read(self) -> tuple[str, ...]:
        """Paths of files that the options name and that decide what is made: a recipe holds their hashes."""
        return ()

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
    changes_weights: ClassVar[bool] = True
    """Whether it is about weights, so that those it leaves alone are named and a coverage can be required."""
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

    def agree(self, model: Model) -> None:
        """Take in what the user promises of inputs, or does not want of outputs; doing it twice is once.

        Called before samples are read and anything is measured, so that all of it is about the same.
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
