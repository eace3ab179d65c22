"""capture: a PyTorch module becomes a Model, traced once and compared with PyTorch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphcompress.errors import ContractError, UnsupportedModelError, UsageError
from graphcompress.extras import needs_torch
from graphcompress.model import Model
from graphcompress.runtime import session_of

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 18
"""What every ONNX Runtime of the last years reads; the oldest that the exporter writes without conversion."""
TOLERANCE = 1e-4
"""Largest difference to PyTorch, as a share of the largest entry of the output."""

Axes = Mapping[int, str]
"""Axis → name of its size, for the axes whose size may differ from call to call."""


@dataclass(frozen=True)
class Traceable:
    """A module, and all that tracing it takes.

    Attributes:
        module: in evaluation mode.
        feed: example inputs by the name of the module's argument.
        axes: input name → its dynamic axes.
        outputs: names of the outputs to keep; None for all.
        longest: largest size of a dynamic axis other than the batch; 0 for that of the example.
        name: for messages.
    """

    module: torch.nn.Module
    feed: Mapping[str, torch.Tensor]
    axes: Mapping[str, Axes]
    outputs: Sequence[str] | None = None
    longest: int = 0
    name: str = "the module"


def capture(
    module: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
    *,
    dynamic_axes: Mapping[str, Axes] | None = None,
    outputs: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> Model:
    """A Model of ``module`` (any ``nn.Module``, also a ``torch.fx.GraphModule``), its outputs checked.

    Traced with ``torch.export`` in evaluation mode and translated to ONNX. ``example_inputs`` are tensors by
    argument name, or in the order of the arguments. Dynamic are, unless ``dynamic_axes`` says otherwise
    (input name → axis → name of the size), the first axis of every input and the second one of token ids
    and of [batch, sequence, features]. Outputs are named as the module names them (a mapping or a Hugging
    Face output), else ``output``, or ``output_0``, ``output_1``, …; ``outputs`` chooses some of them.

    Raises:
        MissingExtraError: torch is not installed.
        UsageError: example inputs that the module does not take, or an unknown output.
        UnsupportedModelError: torch cannot trace the module or translate it.
        ContractError: the ONNX model answers other than the module, also at other batch sizes and lengths.
    """
    needs_torch("capture of a PyTorch module")
    feed = _two_rows(_by_name(module, example_inputs))
    axes = default_axes(feed) if dynamic_axes is None else dynamic_axes
    folder = Path(tempfile.mkdtemp(prefix="graphcompress-"))
    try:
        with evaluating(module):
            translate(Traceable(module, feed, axes, outputs), folder / "model.onnx", opset)
        model = Model.load(folder / "model.onnx")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    model.own(folder)
    return model


def translate(what: Traceable, path: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write ``what`` to ``path`` as ONNX (weights beside it when they are large), its outputs checked.

    Raises:
        UsageError: an unknown output.
        UnsupportedModelError: torch cannot trace the module or translate it.
        ContractError: the ONNX model answers other than the module.
    """
    import torch

    names = _output_names(what)
    dynamic = tuple(dict(what.axes.get(name, {})) for name in what.feed)
    with _quiet():
        try:
            program = torch.onnx.export(
                _positional(what.module, list(what.feed), names),
                tuple(what.feed.values()),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=(dynamic,),
                input_names=list(what.feed),
                output_names=names,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UnsupportedModelError(
                f"{what.name}: torch cannot translate it to ONNX ({_cause(error)}); "
                "the traceback with --debug shows which line of the model"
            ) from error
    if program is None:
        raise UnsupportedModelError(f"{what.name}: torch.onnx.export returned nothing; update torch")
    _name_weights_as_in(program.model.graph)
    _drop_notes(program.model.graph)
    program.save(path)
    check(what, names, path)


def check(what: Traceable, names: Sequence[str], path: Path) -> None:
    """Run the file at ``path`` and the module on the example and on feeds of other sizes, and compare.

    Raises:
        ContractError: an output differs by more than ``TOLERANCE`` of its largest entry.
    """
    session = session_of(path)
    taken = {value.name for value in session.get_inputs()}
    for feed in other_sizes(what):
        expected = _run(what.module, feed)
        arrays = {name: tensor.numpy() for name, tensor in feed.items() if name in taken}
        for name, actual in zip(names, session.run(list(names), arrays), strict=True):
            _compare(what.name, name, expected[name].numpy(), actual, feed)


def other_sizes(what: Traceable) -> Iterator[dict[str, torch.Tensor]]:
    """The example, then one row that is shorter, then three that are longer where the module takes that."""
    sizes = {
        label: what.feed[name].shape[axis] for name, axes in what.axes.items() for axis, label in axes.items()
    }
    yield dict(what.feed)
    for rows, scale in ((1, 0.6), (3, 1.5)):
        wanted = {
            label: rows if label == BATCH_AXIS else max(2, min(int(size * scale), what.longest or size))
            for label, size in sizes.items()
        }
        yield {name: _resized(tensor, what.axes.get(name, {}), wanted) for name, tensor in what.feed.items()}


BATCH_AXIS, LENGTH_AXIS = "batch", "sequence"


def default_axes(feed: Mapping[str, torch.Tensor]) -> dict[str, Axes]:
    """Axis 0 is the batch; axis 1 of token ids and of [batch, sequence, features] is the length.

    Inputs of one length in the example share a name for it; another length gets a name of its own.
    """
    axes: dict[str, Axes] = {}
    lengths: dict[int, str] = {}
    for name, tensor in feed.items():
        axes[name] = {0: BATCH_AXIS} if tensor.ndim else {}
        if (tensor.ndim == 2 and not tensor.is_floating_point()) or tensor.ndim == 3:
            label = LENGTH_AXIS if not lengths else f"{name}_{LENGTH_AXIS}"
            axes[name] = {0: BATCH_AXIS, 1: lengths.setdefault(tensor.shape[1], label)}
    return axes


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` into evaluation mode for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


# ---- inputs


def _by_name(
    module: torch.nn.Module, given: Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    import torch

    parameters = inspect.signature(module.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if not isinstance(given, Mapping):
        if len(given) > len(parameters):
            raise UsageError(f"{len(given)} example inputs are given, the module takes {list(parameters)}")
        given = dict(zip(parameters, given, strict=False))
    for name, tensor in given.items():
        if name not in parameters and not takes_any:
            raise UsageError(f"the module has no argument {name!r}; it takes {list(parameters)}")
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(
                f"example input {name!r} is {type(tensor).__name__}, not a tensor; give tensors only"
            )
    if not given:
        raise UsageError("no example inputs are given; tracing needs one tensor for each argument")
    return dict(given)


def _two_rows(feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An example of one row is doubled: torch.export takes a size of 1 as fixed."""
    if any(tensor.ndim == 0 or tensor.shape[0] != 1 for tensor in feed.values()):
        return feed
    return {name: tensor.repeat(2, *(1 for _ in tensor.shape[1:])) for name, tensor in feed.items()}


def _resized(tensor: torch.Tensor, axes: Axes, sizes: Mapping[str, int]) -> torch.Tensor:
    """``tensor`` cut or repeated along its dynamic axes: every entry is one that the example has."""
    import torch

    for axis, label in axes.items():
        tensor = tensor.index_select(axis, torch.arange(sizes[label]) % tensor.shape[axis])
    return tensor


# ---- outputs


def _run(module: torch.nn.Module, feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of the module by name."""
    import torch

    with torch.no_grad():
        return _named(module(**feed))


def _named(result: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - whatever a module returns
    """The tensors among what a module returned; what is nested deeper (caches) is left out."""
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result}
    if not isinstance(result, (Mapping, Sequence)):
        raise UnsupportedModelError(
            f"the module returns {type(result).__name__}; it must return a tensor, a sequence or a mapping"
        )
    items = result.items() if isinstance(result, Mapping) else enumerate(result)
    prefix = "" if isinstance(result, Mapping) else "output_"
    return {f"{prefix}{key}": value for key, value in items if isinstance(value, torch.Tensor)}


def _output_names(what: Traceable) -> list[str]:
    found = [name for name, tensor in _run(what.module, what.feed).items() if tensor.ndim]
    if what.outputs is None:
        return found
    for name in what.outputs:
        if name not in found:
            raise UsageError(f"{what.name} has no output {name!r}; it has {found}")
    return list(what.outputs)


def _positional(module: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> torch.nn.Module:
    """``module`` with positional inputs and a tuple of outputs, which is what the exporter names in order."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = _named(self.module(**dict(zip(inputs, tensors, strict=True))))
            return tuple(result[name] for name in outputs)

    return Positional().eval()


def _name_weights_as_in(graph: ir.Graph) -> None:
    """Take the wrapper's name off the weights, so that they are called as in the module."""
    for value in list(graph.initializers.values()):
        value.name = (value.name or "").removeprefix("module.")


def _drop_notes(graph: ir.Graph) -> None:
    """Remove the exporter's notes (stack traces with paths of this machine), which nothing reads."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def _compare(
    what: str, name: str, expected: np.ndarray, actual: np.ndarray, feed: Mapping[str, torch.Tensor]
) -> None:
    sizes = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in feed.items())
    advice = "try another --opset or another version of torch, and report it"
    if actual.shape != expected.shape:
        raise ContractError(
            f"{what}: output {name!r} has shape {list(actual.shape)} in ONNX and {list(expected.shape)} in "
            f"PyTorch on {sizes}; {advice}"
        )
    if not np.issubdtype(expected.dtype, np.floating):
        error = float(np.mean(expected != actual))
    else:
        error = float(np.max(np.abs(expected - actual), initial=0.0)) / max(
            float(np.abs(expected).max()), 1e-30
        )
    if not error <= TOLERANCE:
        raise ContractError(
            f"{what}: output {name!r} differs from PyTorch's by {error:.1e} of its range on {sizes}, "
            f"{TOLERANCE:.0e} is allowed; {advice}"
        )


# ---- the exporter


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports optional packages and its own deprecations: nothing a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"
