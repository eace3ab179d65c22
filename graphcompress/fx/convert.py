"""A model becomes a torch.fx.GraphModule."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import fx

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.runtime import CONTRIB
from graphcompress.fx.builder import FxBuilder, operator_name
from graphcompress.fx.fusions import Fusion, plan
from graphcompress.fx.names import identifier
from graphcompress.fx.ops.table import Result, find
from graphcompress.fx.stored import Stored
from graphcompress.fx.taps import find_values
from graphcompress.fx.types import compute_type, stored_type
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import teacher_forced

FORMS_KEY = "forms"
"""Key of ``GraphModule.meta``: path of a parameter → how it is stored in the ONNX graph."""
SCALES_KEY = "scales"
"""Key of ``GraphModule.meta``: paths of the parameters that are scales of a quantisation."""


def to_fx(model: Model, *, learn_scales: bool = False, taps: Sequence[str] = ()) -> fx.GraphModule:
    """``model`` as a torch.fx.GraphModule that computes the same and can be trained, in float32.

    Its arguments are the graph's inputs by name, tensors of the types that ONNX declares; it returns a dict
    from the name of each output to its tensor. Batch and length stay dynamic: shape arithmetic runs on Python
    integers. The model is not changed; :func:`graphcompress.fx.write_back` puts trained values into it. The
    parts of a model of several files become one module, :func:`graphcompress.graph.teacher_forced`.

    * Parameters carry the names of the initializers, so that ``gm.state_dict()`` reads like a checkpoint;
      ``gm.meta["initializers"]`` maps the path of each to the name (they differ where PyTorch forbids one).
    * Integer tables, single numbers, masks, rotary angles and running statistics are buffers, or numbers
      in the code.
    * QuantizeLinear and DequantizeLinear are one rounding with a straight-through gradient, zero where a
      value was clamped. A weight stored as integers is a float parameter that is rounded in the graph, and
      clamped to the range in use. Scales are buffers, or parameters with ``learn_scales``.
    * A weight that is an expression (Kronecker factors, float16 or int8 leaves) stays that expression: the
      leaves are the parameters.
    * Attention is scaled_dot_product_attention, GELU is gelu, MatMul and Add are linear, unless a value in
      ``taps`` lies inside: names of values of the ONNX graph that are returned beside the outputs.

    Raises:
        UnsupportedModelError: an operator or a type without a counterpart; nothing has run.
        UsageError: a tap that is no value of the graph.
    """
    model = teacher_forced(model) if model.joined else model
    _refuse_unknown(model)
    wanted = find_values(model, taps)
    stored = Stored(model.graph.initializers.values(), learn_scales=learn_scales)
    builder = FxBuilder(stored)
    names = {}
    for value in model.graph.inputs:
        # An initializer that is an input as well is a weight here.
        if value.name not in model.graph.initializers:
            builder.placeholder(value)
            names[identifier(value.name or "input")] = value.name or ""
    builder.convert_inputs()
    fusions = plan(model, set(wanted))
    for node in model.graph:
        _write(builder, node, fusions)
    outputs = dict.fromkeys((*model.graph.outputs, *wanted))
    builder.graph.output({value.name or "": _output(builder, value) for value in outputs})
    # What only fused nodes read was written as well, and goes here.
    builder.graph.eliminate_dead_code()
    module = fx.GraphModule(stored.root, builder.graph, "Model")
    # A parameter that no node reads is not part of the module.
    used = dict(module.named_parameters())
    module.meta["inputs"] = names
    module.meta[FORMS_KEY] = {path: form for path, form in stored.forms.items() if path in used}
    module.meta["initializers"] = {path: form.initializer for path, form in module.meta[FORMS_KEY].items()}
    module.meta[SCALES_KEY] = [path for path in module.meta[FORMS_KEY] if path in stored.learned_scales]
    return module


def _refuse_unknown(model: Model) -> None:
    for node in model.graph:
        if find(node) is None:
            advice = "train the model before the pass or the target that writes this operator"
            if node.domain == CONTRIB:
                advice = f"let the pass simplify take it apart first, or {advice}"
            raise UnsupportedModelError(
                f"node {node.name!r} is of operator {operator_name(node)}, which has no counterpart in "
                f"torch; {advice}"
            )


def _write(builder: FxBuilder, node: ir.Node, fusions: dict[ir.Node, Fusion | None]) -> None:
    if node in fusions:
        fusion = fusions[node]
        if fusion is not None:
            builder.set(node.outputs[0], fusion.write(builder))
        return
    function = find(node)
    result: Result | None = builder.numbers(node)
    if result is None and function is not None:
        result = function(builder, node)
    results = result if isinstance(result, tuple) else (result,)
    for value, made in zip(node.outputs, results, strict=False):
        if made is not None:
            builder.set(value, made)
    _carry(builder, node)


_LAYOUT = frozenset(
    """
    Concat Expand Flatten Gather GatherElements GatherND Identity Pad Reshape Slice Split Squeeze Tile
    Transpose Unsqueeze Where
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
"""Operators that pass integers on as they are."""


def _carry(builder: FxBuilder, node: ir.Node) -> None:
    """Integers that are kept as floats stay so when they are moved."""
    if node.op_type in _LAYOUT and any(value in builder.quantised for value in node.inputs):
        builder.quantised.update(node.outputs)


def _output(builder: FxBuilder, value: ir.Value) -> fx.Node:
    """The tensor of an output, in the type that the graph declares."""
    tensor, dtype = builder.tensor(value), stored_type(value.dtype)
    if value in builder.quantised or (dtype is not None and dtype != compute_type(value.dtype)):
        return builder.method("to", tensor, dtype or torch.float32)
    return tensor
