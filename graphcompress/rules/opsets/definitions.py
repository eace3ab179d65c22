"""Operators that are newer than an opset, by what ONNX defines them to be."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from graphcompress.graph.match import is_standard, node_name
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.everything import simplify
from graphcompress.rules.opsets.attention import decompose_attention
from graphcompress.rules.opsets.versions import definition


def spell_out(model: Model, ctx: Context, newest: int) -> list[str]:
    """Write what ``newest`` does not have (RMSNormalization, Swish, Attention …) in its operators.

    Returns the names of the nodes. A definition is that of the ONNX standard, with the arithmetic on shapes
    simplified. Left alone: operators without one, or whose operands have no known type.
    """
    done: list[str] = []
    with Rewriter(model, ctx) as rw:
        for node in list(model.graph):
            if not node.domain and definition(node.op_type, newest) is None:
                name = node_name(node)
                plain = is_standard(node, "Attention") and decompose_attention(rw, node)
                if plain or _define(rw, node):
                    done.append(name)
    if done:
        with Rewriter(model, ctx) as rw:
            simplify(rw)
    return done


def _define(rw: Rewriter, node: ir.Node) -> bool:
    """Put the definition of ``node`` in its place; whether there is one."""
    values = [value for value in (*node.inputs, *node.outputs) if value and value.name]
    if any(value.type is None for value in values):
        return False
    alone = onnx.helper.make_graph(
        [_with_defaults(node, rw.model.opset)],
        "definition",
        [ir.to_proto(value) for value in dict.fromkeys(filter(None, node.inputs))],
        [ir.to_proto(value) for value in node.outputs if value.name],
    )
    whole = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", rw.model.opset)])
    defined = onnx.inliner.inline_selected_functions(
        whole, [("", node.op_type)], inline_schema_functions=True
    )
    # The inliner says nothing of an operator without a definition: the node comes back as it was.
    if any(step.op_type == node.op_type for step in defined.graph.node):
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


def _insert(rw: Rewriter, node: ir.Node, steps: ir.Graph) -> None:
    """The steps of a definition in front of ``node``; its outputs take the place of the node's."""
    b = rw.at(node)
    known: dict[str | None, ir.Value | None] = {value.name: value for value in node.inputs if value}
    for step in steps:
        name = step.outputs[0].name or ""
        stored = ir.convenience.get_const_tensor(step.outputs[0])
        if stored is not None:
            known[name] = rw.constant(stored.numpy(), f"{b.name}.{name}", stored.dtype)
            continue
        operands = [known[value.name] if value else None for value in step.inputs]
        # A definition holds for any type; here the type is known, and the second operand not needed for it.
        like = operands[1].dtype if step.op_type == "CastLike" and operands[1] else None
        if like is not None:
            known[name] = b.op("Cast", operands[0], name=name, to=like)
            continue
        made = b.node(step.op_type, *operands, name=name, outputs=len(step.outputs))
        made.attributes.update(step.attributes)
        known |= {old.name: new for old, new in zip(step.outputs, made.outputs, strict=True)}
    for output in node.outputs:
        value = known.get(output.name)
        if value is not None:
            rw.replace(output, value, take_name=True)
