"""capture: a PyTorch module becomes a Model, traced once and compared with PyTorch."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphcompress.capturing.comparison import answers_of, check
from graphcompress.capturing.traceable import Axes, Traceable, default_axes, terms
from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.files.joining import part_of_model
from graphcompress.files.part_files import save_parts
from graphcompress.files.temporary import Temporary
from graphcompress.graph.match import module_path
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.extras import needs_torch

if TYPE_CHECKING:
    import torch

DEFAULT_OPSET = 18
"""Every ONNX Runtime since 1.14 reads this opset, and it is the oldest that PyTorch's exporter writes
without conversion."""


def capture(
    module: torch.nn.Module,
    example_inputs: Mapping[str, Any] | Sequence[Any],
    *,
    dynamic_axes: Mapping[str, Axes] | None = None,
    outputs: Sequence[str] | None = None,
    opset: int = DEFAULT_OPSET,
) -> Model:
    """A Model of ``module`` (any ``nn.Module``, also a ``torch.fx.GraphModule``), its outputs checked.

    Traced with ``torch.export`` in evaluation mode and translated to ONNX. ``example_inputs`` are by argument
    name, or in the order of the arguments: tensors, or caches of transformers (``DynamicCache``,
    ``EncoderDecoderCache``), tuples and mappings of tensors, each tensor of which is an input under a name
    such as ``past_key_values.0.key``.

    Dynamic are, unless ``dynamic_axes`` says otherwise (input name → axis → name of the size, ``past +
    sequence`` for a sum), the first axis of every input, the second one of token ids and of [batch, sequence,
    features], and the third one of keys and values. Outputs are named as the module names them (a mapping or
    a Hugging Face output), else ``output``, or ``output_0``, ``output_1``, …, and those of a cache
    ``present.0.key``; ``outputs`` chooses some of them.

    Raises:
        MissingExtraError: torch is not installed.
        UsageError: example inputs that the module does not take, an unknown output, or axes of an input that
            there is not.
        UnsupportedModelError: torch cannot trace the module or translate it.
        ContractError: the ONNX model answers other than the module, also at other batch sizes and lengths.
    """
    needs_torch("capture of a PyTorch module")
    from graphcompress.capturing.given import traceable

    what = traceable(module, example_inputs)
    axes = default_axes(what.feed) if dynamic_axes is None else dynamic_axes
    unknown = next((name for name in axes if name not in what.feed), None)
    if unknown is not None:
        raise UsageError(
            f"dynamic_axes names {unknown!r}, which is no input; the inputs are {', '.join(what.feed)}"
        )
    # The model maps its weights from this folder, which lives as long as the model.
    folder = Temporary()
    try:
        with evaluating(module):
            model = translate(replace(what, axes=axes, outputs=outputs), folder.path / "model.onnx", opset)
    except BaseException:
        folder.remove()
        raise
    model.own(folder)
    return model


def translate(what: Traceable, path: Path, opset: int = DEFAULT_OPSET) -> Model:
    """Write ``what`` to ``path`` as ONNX (weights beside it when they are large), its outputs checked.

    The model is read from that file.

    Raises:
        UsageError: an unknown output.
        UnsupportedModelError: torch cannot trace the module or translate it.
        ContractError: the ONNX model answers other than the module.
    """
    made = translated(what, opset)
    part = part_of_model(path, made)
    known = answers_of(what, output_names(what))
    save_parts([(replace(part, path=Path(path.name)), made)], path.parent)
    del made  # it holds what was traced, which is large beside the weights
    model = Model.load(path)
    with Runner(model) as run:
        check(known, part, run)
    return model


def translated(what: Traceable, opset: int = DEFAULT_OPSET) -> ir.Model:
    """``what`` as ONNX; the weights are the module's own, not copies, and have its names for them.

    Raises:
        UsageError: an unknown output.
        UnsupportedModelError: torch cannot trace the module or translate it.
    """
    import torch

    names = output_names(what)
    dynamic = tuple(dict(what.axes.get(name, {})) for name in what.feed)
    with _quiet(), _experts_by_index(what.module):
        try:
            program = torch.onnx.export(
                _positional(what, names),
                tuple(what.feed.values()),
                dynamo=True,
                opset_version=opset,
                # The module has one argument, *tensors, of which each has its axes.
                dynamic_shapes=(dynamic,),
                input_names=list(what.feed),
                output_names=names,
                # The exporter's own passes fold the Transpose of a weight, whose name is gone then.
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UnsupportedModelError(
                f"{what.name}: torch cannot translate it to ONNX ({_cause(error)}); "
                "the traceback with --debug shows which line of the model"
            ) from error
    if program is None:
        raise UnsupportedModelError(f"{what.name}: torch.onnx.export returned nothing; update torch")
    _optimize(program.model)
    _name_weights_as_in(what.module, program.model.graph)
    _turn_weights(program.model.graph)
    _drop_notes(program.model.graph)
    return program.model


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` into evaluation mode for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextlib.contextmanager
def _experts_by_index(module: torch.nn.Module) -> Iterator[None]:
    """Let experts of transformers look their weights up by index for a while.

    Its own product of groups has no translation, and the loop over those that were hit cannot be traced.
    """
    found = {id(config): config for part in module.modules() if (config := getattr(part, "config", None))}
    kept = [(config, getattr(config, _EXPERTS, None)) for config in found.values()]
    changed = [(config, before) for config, before in kept if before in ("grouped_mm", "eager")]
    for config, _ in changed:
        setattr(config, _EXPERTS, {"": "batched_mm"})  # as a mapping: the configuration alone, none below it
    try:
        yield
    finally:
        for config, before in changed:
            setattr(config, _EXPERTS, {"": before})


_EXPERTS = "_experts_implementation"


def output_names(what: Traceable) -> list[str]:
    """Names of the outputs that are kept: all, or those that are asked for.

    Raises:
        UsageError: one is asked for that there is not.
    """
    found = [name for name, tensor in what.run().items() if tensor.ndim]
    if what.outputs is None:
        return found
    for name in what.outputs:
        if name not in found:
            raise UsageError(f"{what.name} has no output {name!r}; it has {found}")
    return list(what.outputs)


def _positional(what: Traceable, outputs: Sequence[str]) -> torch.nn.Module:
    """The module with positional inputs and a tuple of outputs, which is what the exporter names in order."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = what.module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            feed = dict(zip(what.feed, tensors, strict=True))
            # First of all: a symbol fewer for each input, which the tracer would find out, and compare, again
            # and again.
            _same_sizes(what, feed)
            result = what.outputs_on(feed)
            return tuple(result[name] for name in outputs)

    return Positional().eval()


def _same_sizes(what: Traceable, feed: Mapping[str, torch.Tensor]) -> None:
    """State that sizes of one name are equal."""
    import torch

    known: dict[str, int] = {}
    found = [
        (label, feed[name].shape[axis]) for name, axes in what.axes.items() for axis, label in axes.items()
    ]
    for label, size in sorted(found, key=lambda item: len(terms(item[0]))):
        if len(terms(label)) > 1:
            known.setdefault(label, sum(known[term] for term in terms(label)))
        torch._check(size == known.setdefault(label, size))  # type: ignore[no-untyped-call]


# ---- the graph


def _optimize(model: ir.Model) -> None:
    """The passes of onnxscript's ``optimize_ir``, but weights that are read transposed are not folded."""
    import onnx_ir.passes.common as common
    from onnxscript.optimizer._constant_folding import FoldConstantsPass
    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, RewritePass

    fold = FoldConstantsPass(
        shape_inference=False,
        input_size_limit=FOLDED_INPUT_ELEMENTS,
        output_size_limit=FOLDED_OUTPUT_ELEMENTS,
        should_fold=lambda node: False if _turns_weight(node) else None,
    )
    rewrite = RewritePass([_guarded(_own(rule)) for rule in _DEFAULT_REWRITE_RULES])
    for _ in range(2):
        for step in (fold, rewrite, common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()):
            step(model)
    for step in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)


FOLDED_INPUT_ELEMENTS, FOLDED_OUTPUT_ELEMENTS = 8192, 512 * 512
"""Most elements of what constant folding reads and makes; onnxscript's own bounds."""


def _own(rule: Any) -> Any:  # noqa: ANN401 - a rule of onnxscript
    """A copy of ``rule`` with a matcher of its own.

    A matcher keeps the last graph that it saw: the library's would keep this one, weights and all, and may
    hold one of another caller.
    """
    own = copy.copy(rule)
    own._matcher = copy.copy(rule._matcher)  # noqa: SLF001
    return own


def _guarded(rule: Any) -> Any:  # noqa: ANN401 - a rule of onnxscript
    """``rule``, which is tried at slices alone if it is the one that joins two of them to a split.

    It looks through the whole graph at every node: in 30 layers that took most of the time of an export.
    """
    if rule.name != "SlicesSplit":
        return rule
    rewrite = rule.try_rewrite
    rule.try_rewrite = lambda model, graph, node, **options: (
        rewrite(model, graph, node, **options) if node.op_type == "Slice" else None
    )
    return rule


def _turns_weight(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _turn_weights(graph: ir.Graph) -> None:
    """Weights that are read transposed, and so alone, are stored so, under their own names."""
    for value in list(graph.initializers.values()):
        readers = [usage.node for usage in value.uses()]
        tensor = value.const_value
        # A weight that is tied to an embedding has another reader: turned, it would be stored twice.
        if not readers or tensor is None or len(tensor.shape) != 2 or not all(map(_turns_weight, readers)):
            continue
        value.const_value = ir.tensor(tensor.numpy().T, name=value.name)
        value.shape = ir.Shape(value.const_value.shape.numpy())
        for node in readers:
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)


def _name_weights_as_in(module: torch.nn.Module, graph: ir.Graph) -> None:
    """Weights are called as in the module, and one that has several names there by the first of them."""
    import torch

    # Reversed, so that of several names the first is written last; tensors without a number all lie at
    # address 0.
    names = {
        tensor.data_ptr(): name
        for name, tensor in reversed([*module.named_parameters(), *module.named_buffers()])
        if tensor.numel()
    }
    for value in list(graph.initializers.values()):
        raw = getattr(value.const_value, "raw", None)
        pointer = raw.data_ptr() if isinstance(raw, torch.Tensor) else 0
        name = names.get(pointer) or (value.name or "").removeprefix("module.")
        same = graph.initializers.get(name)
        if same is None or same is value:
            value.name = name
        else:
            value.replace_all_uses_with(same)
            del graph.initializers[value.name or ""]


def _drop_notes(graph: ir.Graph) -> None:
    """Remove the exporter's notes (stack traces with paths of this machine), which nothing reads.

    What they say about the module of a product stays as its name: its weight may have lost its own.
    """
    for number, node in enumerate(ir.traversal.RecursiveGraphIterator(graph)):
        module = module_path(node).removeprefix("module.")
        if module and node.op_type in ("MatMul", "Gemm"):
            node.name = f"/{module.replace('.', '/')}/{node.op_type}_{number}"
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
