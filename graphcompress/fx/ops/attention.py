"""Attention and rotary positions, operators since opset 23."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx
from torch.nn import functional

from graphcompress.fx.attention import attention, rotary
from graphcompress.fx.builder import FxBuilder, Operand
from graphcompress.fx.ops.table import operator
from graphcompress.graph.match import operand


@operator("Attention")
def attention_(builder: FxBuilder, node: ir.Node) -> Operand | tuple[Operand | None, ...]:
    """softmax(scale · q · kᵀ + mask) · v; with caches, soft caps and scores as outputs on request."""
    q, k, v = (builder.tensor(value) for value in node.inputs[:3])
    extra = [operand(node, index) for index in (3, 4, 5, 6)]
    mask, past_key, past_value, valid = (None if value is None else builder.tensor(value) for value in extra)
    window = tuple(node.attributes.get_int(f"{side}_window_size", -1) for side in ("left", "right"))
    heads = (node.attributes.get_int("q_num_heads", 0), node.attributes.get_int("kv_num_heads", 0))
    scale = node.attributes.get_float("scale", 0.0) or None
    causal = bool(node.attributes.get_int("is_causal", 0))
    capped = node.attributes.get_float("softcap", 0.0)
    is_plain = past_key is None and valid is None and window == (-1, -1)
    if is_plain and len(node.outputs) == 1 and not capped:
        return _plain(builder, node, (q, k, v), heads, mask=mask, scale=scale, causal=causal)
    parts = builder.call(
        attention,
        q, k, v, mask, past_key, past_value,
        heads=heads,
        scale=scale,
        causal=causal,
        softcap=capped,
        window=window,
        valid=valid,
        scores_after=node.attributes.get_int("qk_matmul_output_mode", 0),
    )  # fmt: skip
    return tuple(builder.item(parts, index) for index in range(len(node.outputs)))


def _plain(
    builder: FxBuilder,
    node: ir.Node,
    operands: tuple[fx.Node, ...],
    heads: tuple[int, int],
    *,
    mask: fx.Node | None,
    scale: float | None,
    causal: bool,
) -> fx.Node:
    """One call of PyTorch's attention, with heads split and merged around it."""
    packed = builder.rank(node.inputs[0], node) == 3
    counts: tuple[object, ...] = (heads[0], heads[1], heads[1])
    if not packed:
        counts = tuple(builder.size(value, 1) for value in node.inputs[:3] if value)
    else:
        operands = tuple(
            builder.method("transpose", builder.method("unflatten", x, -1, (count, -1)), 1, 2)
            for x, count in zip(operands, counts, strict=True)
        )
    # PyTorch's call refuses a mask beside is_causal.
    if causal and mask is not None:
        parts = builder.call(attention, *operands, mask, heads=heads, scale=scale, causal=True)
        made = builder.item(parts, 0)
    else:
        grouped = counts[0] != counts[1]
        options = {"attn_mask": mask, "is_causal": causal, "scale": scale, "enable_gqa": grouped}
        given = {name: value for name, value in options.items() if value not in (None, False)}
        made = builder.call(functional.scaled_dot_product_attention, *operands, **given)
    return builder.method("flatten", builder.method("transpose", made, 1, 2), 2) if packed else made


@operator("RotaryEmbedding")
def rotary_embedding(builder: FxBuilder, node: ir.Node) -> Operand:
    """Queries or keys rotated by angles of their positions."""
    names = ("num_heads", "rotary_embedding_dim", "interleaved")
    heads, width, interleaved = (node.attributes.get_int(name, 0) for name in names)
    given = (*node.inputs[:3], operand(node, 3))
    operands = [None if value is None else builder.tensor(value) for value in given]
    return builder.call(rotary, *operands, heads=heads, width=width, interleaved=bool(interleaved))
