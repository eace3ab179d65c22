"""capture: a PyTorch module becomes a Model, traced once and compared with PyTorch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphcompress.capturing.comparison import check
from graphcompress.capturing.traceable import Axes, Traceable, default_axes, run, tensors_of
from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.temporary import Temporary
from graphcompress.plugin.extras import needs_torch

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 18
"""Every ONNX Runtime since 1.14 reads this opset, and it is the oldest that PyTorch's exporter writes
without conversion."""


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
    folder = Temporary()
    try:
        with evaluating(module):
            translate(Traceable(module, feed, axes, outputs), folder.path / "model.onnx", opset)
        model = Model.load(folder.path / "model.onnx")
    except BaseException:
        folder.remove()
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


def _output_names(what: Traceable) -> list[str]:
    found = [name for name, tensor in run(what.module, what.feed).items() if tensor.ndim]
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
            result = tensors_of(self.module(**dict(zip(inputs, tensors, strict=True))))
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
