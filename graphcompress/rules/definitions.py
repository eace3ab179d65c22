"""Operators that are newer than an opset, by what ONNX defines them to be."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.attention_operator import decompose_attention
from graphcompress.rules.everything import simplify


def spell_out(model: Model, ctx: Context, newest: int) -> list[str]:
    """Write what ``newest`` does not have (RMSNormalization, Swish, Attention …) in its operators.

    Returns the names of the nodes. A definition is that of the ONNX standard, with the arithmetic on shapes
    simplified. Left alone: operators without one, or whose operands have no known type.
    """
    done: list[str] = []
    with Rewriter(model, ctx) as rw:
        for node in list(model.graph):
            if not node.domain and _is_newer(node, newest):
                name = node.name or node.outputs[0].name or node.op_type
                plain = is_standard(node, "Attention") and decompose_attention(rw, node)
                if plain or _define(rw, node):
                    done.append(name)
    if done:
        with Rewriter(model, ctx) as rw:
            simplify(rw)
    return done


def _is_newer(node: ir.Node, newest: int) -> bool:
    try:
        known = onnx.defs.get_schema(node.op_type, newest, "")
    except onnx.defs.SchemaError:
        return True
    return bool(known.deprecated)  # its name means something else since


def _define(rw: Rewriter, node: ir.Node) -> bool:
    """Put the definition of ``node`` in its place; whether there is one."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if any(value.type is None for value in values):
        return False
    alone = onnx.helper.make_graph(
        [_with_defaults(node, rw.model.opset)],
        "definition",
        [ir.to_proto(value) for value in dict.fromkeys(it for it in node.inputs if it is not None)],
        [ir.to_proto(value) for value in node.outputs if value.name],
    )
    whole = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", rw.model.opset)])
    defined = onnx.inliner.inline_selected_functions(
        whole, [("", node.op_type)], inline_schema_functions=True
    )
    if any(it.op_type == node.op_type for it in defined.graph.node):
        return False
    _insert(rw, node, ir.from_proto(defined).graph)
    return True


def _with_defaults(node: ir.Node, opset: int) -> onnx.NodeProto:
    """``node`` with all its attributes: a definition refers to those that are not given, too."""
    proto: onnx.NodeProto = ir.to_proto(node)
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in node.attributes and attribute.default_value.name:
            proto.attribute.append(attribute.default_value)
    return proto


def _insert(rw: Rewriter, node: ir.Node, definition: ir.Graph) -> None:
    """The steps of a definition in front of ``node``; its outputs take the place of the node's."""
    known: dict[str | None, ir.Value] = {it.name: it for it in node.inputs if it is not None}
    for step in definition:
        name = f"{node.outputs[0].name}.{step.outputs[0].name}"
        stored = ir.convenience.get_const_tensor(step.outputs[0])
        if stored is not None:
            known[step.outputs[0].name] = rw.constant(stored.numpy(), name, stored.dtype)
            continue
        inputs = [None if it is None else known[it.name] for it in step.inputs]
        first = _step(rw, step, inputs, node, name)
        made = first.producer()
        known |= dict(zip((it.name for it in step.outputs), made.outputs if made else (), strict=True))
    for output in node.outputs:
        if output.name in known:
            rw.supersede(output, known[output.name])


def _step(rw: Rewriter, step: ir.Node, inputs: list[ir.Value | None], before: ir.Node, name: str) -> ir.Value:
    like = inputs[1].dtype if step.op_type == "CastLike" and inputs[1] is not None else None
    if like is not None:
        return rw.node("Cast", inputs[0], before=before, name=name, to=int(like))
    value = rw.node(step.op_type, *inputs, before=before, name=name, outputs=len(step.outputs))
    made = value.producer()
    if made is not None:
        made.attributes.update(step.attributes)
    return value
