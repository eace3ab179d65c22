"""Small models written as ONNX text: declared values that no node computes become random weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from graphcompress.graph.model import Model

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.example" : 1]>'


def model_of(text: str, *, opset: int = 18, seed: int = 0) -> Model:
    """The model of a graph's text; weights are random float32."""
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    rng = np.random.default_rng(seed)
    for value in proto.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (0.4 * rng.standard_normal(shape)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
    del proto.graph.value_info[:]
    return Model(ir.from_proto(proto))


MLP = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 24] up, float[24] up_bias, float[24, 16] down, float[16] down_bias>
{
  a = MatMul(x, up)
  b = Add(a, up_bias)
  c = Gelu(b)
  d = MatMul(c, down)
  e = Add(d, down_bias)
  y = Add(x, e)
}
"""

GRAM = (
    MLP.replace(" y)\n", " y, float[batch, sequence, sequence] gram)\n")
    .replace("d =", "t = Transpose <perm = [0, 2, 1]> (c)\n  gram = MatMul(c, t)\n  d =")
    .replace("Gelu", "Sigmoid")
)
"""The hidden features are also multiplied with themselves."""

SHARED_BIAS = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 24] up0, float[24] bias, float[24, 16] down0, float[16, 24] up1, float[24, 16] down1>
{
  a = MatMul(x, up0)
  b = Add(a, bias)
  c = Sigmoid(b)
  d = MatMul(c, down0)
  r = Add(x, d)
  e = MatMul(r, up1)
  f = Add(e, bias)
  h = Sigmoid(f)
  i = MatMul(h, down1)
  y = Add(r, i)
}
"""

GATED = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 48] both, float[24, 16] down>
{
  a = MatMul(x, both)
  gate, value = Split <axis = -1, num_outputs = 2> (a)
  s = Sigmoid(gate)
  m = Mul(s, value)
  d = MatMul(m, down)
  y = Add(x, d)
}
"""

PACKED = """
g (float[batch, sequence, 16] x, bool[batch, 1, 1, sequence] mask) => (float[batch, sequence, 16] y)
<float[16, 48] qkv, float[48] qkv_bias, float[16, 16] out,
 int64[3] sizes = {16, 16, 16}, int64[4] heads = {0, 0, 4, 4}, int64[3] joined = {0, 0, 16},
 float zero = {0.0}, float lowest = {-10000.0}, float root = {2.0}>
{
  product = MatMul(x, qkv)
  packed = Add(product, qkv_bias)
  q, k, v = Split <axis = 2> (packed, sizes)
  q4 = Reshape(q, heads)
  k4 = Reshape(k, heads)
  v4 = Reshape(v, heads)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  kt = Transpose <perm = [0, 2, 3, 1]> (k4)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  raw = MatMul(qt, kt)
  scores = Div(raw, root)
  masked = Where(mask, scores, lowest)
  soft = Softmax <axis = -1> (masked)
  context = MatMul(soft, vt)
  ct = Transpose <perm = [0, 2, 1, 3]> (context)
  c = Reshape(ct, joined)
  o = MatMul(c, out)
  y = Add(x, o)
}
"""

PACKED_SLICES = (
    PACKED.replace(
        "q, k, v = Split <axis = 2> (packed, sizes)",
        """
  q = Slice(packed, n0, n16, n2)
  k = Slice(packed, n16, n32, n2)
  v = Slice(packed, n32, end, n2)
""",
    )
    .replace("int64[3] sizes = {16, 16, 16},", "int64[1] n0 = {0}, int64[1] n16 = {16}, int64[1] n32 = {32},")
    .replace("int64[4] heads", "int64[1] n2 = {2}, int64[1] end = {9223372036854775807}, int64[4] heads")
)

SINKS = PACKED.replace(
    "soft = Softmax <axis = -1> (masked)",
    """
  size0 = Shape <start = 0, end = 1> (x)
  size1 = Shape <start = 1, end = 2> (x)
  wide = Concat <axis = 0> (size0, n4, size1, n1)
  sink = Expand(sinks, wide)
  beside = Concat <axis = -1> (masked, sink)
  peak = ReduceMax <keepdims = 1> (beside, last)
  apart = Sub(beside, peak)
  all = Softmax <axis = -1> (apart)
  soft = Slice(all, n0, last, last, n1)
""",
).replace(
    "int64[4] heads",
    "float[1, 4, 1, 1] sinks, int64[1] n0 = {0}, int64[1] n1 = {1}, int64[1] n4 = {4}, int64[1] last = {-1}, "
    "int64[4] heads",
)
"""Every query may also look at a sink, which has no value."""

GROUPED = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 32] q_proj, float[16, 16] k_proj, float[16, 16] v_proj, float[32, 16] out,
 int64[4] query_heads = {0, 0, 4, 8}, int64[4] key_heads = {0, 0, 2, 8}, int64[1] axis2 = {2},
 int64[1] two = {2}, int64[1] n4 = {4}, int64[1] n8 = {8}, int64[3] joined = {0, 0, 32}>
{
  size0 = Shape <start = 0, end = 1> (x)
  size1 = Shape <start = 1, end = 2> (x)
  q = MatMul(x, q_proj)
  k = MatMul(x, k_proj)
  v = MatMul(x, v_proj)
  q4 = Reshape(q, query_heads)
  k4 = Reshape(k, key_heads)
  v4 = Reshape(v, key_heads)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  wide = Concat <axis = 0> (size0, two, two, size1, n8)
  flat = Concat <axis = 0> (size0, n4, size1, n8)
  k5 = Unsqueeze(kt, axis2)
  v5 = Unsqueeze(vt, axis2)
  ke = Expand(k5, wide)
  ve = Expand(v5, wide)
  kr = Reshape(ke, flat)
  vr = Reshape(ve, flat)
  kx = Transpose <perm = [0, 1, 3, 2]> (kr)
  scores = MatMul(qt, kx)
  soft = Softmax <axis = -1> (scores)
  context = MatMul(soft, vr)
  ct = Transpose <perm = [0, 2, 1, 3]> (context)
  c = Reshape(ct, joined)
  o = MatMul(c, out)
  y = Add(x, o)
}
"""

OPERATOR = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 32] q_proj, float[16, 16] k_proj, float[16, 16] v_proj, float[32, 16] out>
{
  q = MatMul(x, q_proj)
  k = MatMul(x, k_proj)
  v = MatMul(x, v_proj)
  context = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)
  o = MatMul(context, out)
  y = Add(x, o)
}
"""

_SIZES = """
  size0 = Shape <start = 0, end = 1> (x0)
  size1 = Shape <start = 1, end = 2> (x0)
  length = Squeeze(size1)
  places = Range(n0, length, n1)
  columns = Unsqueeze(places, axis0)
  rows = Unsqueeze(places, axis1)
  apart = Sub(columns, rows)
  near = Clip(apart, lowest, highest)
  bucket = Add(near, highest)
"""

_LAYER = """
  q{0} = MatMul(x{0}, q_proj{0})
  k{0} = MatMul(x{0}, k_proj{0})
  v{0} = MatMul(x{0}, v_proj{0})
  q4{0} = Reshape(q{0}, heads)
  k4{0} = Reshape(k{0}, heads)
  v4{0} = Reshape(v{0}, heads)
  qt{0} = Transpose <perm = [0, 2, 1, 3]> (q4{0})
  kt{0} = Transpose <perm = [0, 2, 3, 1]> (k4{0})
  vt{0} = Transpose <perm = [0, 2, 1, 3]> (v4{0})
{scores}
  soft{0} = Softmax <axis = -1> (scores{0})
  context{0} = MatMul(soft{0}, vt{0})
  ct{0} = Transpose <perm = [0, 2, 1, 3]> (context{0})
  c{0} = Reshape(ct{0}, joined)
  o{0} = MatMul(c{0}, out{0})
  x{1} = Add(x{0}, o{0})
"""


def _layers(*, between: str, scores: str, more: str = "") -> str:
    """Two layers of attention; ``between`` is computed once, before the layers or after the first product."""
    weights = ", ".join(
        f"float[16, 16] {name}{layer}" for layer in (0, 1) for name in ("q_proj", "k_proj", "v_proj", "out")
    )
    parts = [_LAYER.format(n, n + 1, scores=scores.format(n, between=between * (n == 0))) for n in (0, 1)]
    return (
        "g (float[batch, sequence, 16] x0) => (float[batch, sequence, 16] x2)\n"
        f"<{weights}, int64[4] heads = {{0, 0, 4, 4}}, int64[3] joined = {{0, 0, 16}}, int64 n0 = {{0}}, "
        "int64 n1 = {1}, int64[1] axis0 = {0}, int64[1] axis1 = {1}, int64[1] n4 = {4}, "
        f"int64 lowest = {{-2}}, int64 highest = {{2}}{more}>\n{{{_SIZES}{''.join(parts)}}}\n"
    )


RELATIVE_BIAS = _layers(
    between="""
  by_bucket = Gather(table, bucket)
  bias = Transpose <perm = [2, 0, 1]> (by_bucket)
""",
    scores="""{between}
  raw{0} = MatMul(qt{0}, kt{0})
  scores{0} = Add(raw{0}, bias)
""",
    more=", float[5, 4] table",
)
"""Both layers add one bias by relative position."""

_FLAT_HEADS = """
  batches{0} = Mul(size0, n4)
  flat{0} = Concat <axis = 0> (batches{0}, size1, n4)
  turned{0} = Concat <axis = 0> (batches{0}, n4, size1)
  by_head{0} = Concat <axis = 0> (size0, n4, size1, size1)
  q3{0} = Reshape(qt{0}, flat{0})
  k3{0} = Reshape(kt{0}, turned{0})
  raw{0} = MatMul(q3{0}, k3{0})
{between}
"""
"""Scores of heads and samples along one axis."""

SHARED_EXPAND = _layers(
    between="""
  all_heads = Shape <start = 0, end = 1> (raw0)
  wide = Concat <axis = 0> (all_heads, size1, size1)
  one_bucket = Unsqueeze(in_reach, axis0)
  buckets = Expand(one_bucket, wide)
""",
    scores=_FLAT_HEADS
    + """
  taken{0} = GatherElements <axis = -1> (raw{0}, buckets)
  both{0} = Add(raw{0}, taken{0})
  scores{0} = Reshape(both{0}, by_head{0})
""",
).replace("bucket = Add(near, highest)", "bucket = Add(near, highest)\n  in_reach = Mod(bucket, size1)")
"""Both layers read one Expand along heads, whose size is measured in the first."""

TILED_POSITIONS = _layers(
    between="""
  all_heads = Shape <start = 0, end = 1> (raw0)
  samples = Div(all_heads, n4)
  times = Concat <axis = 0> (samples, axis1, axis1)
  wide = Concat <axis = 0> (all_heads, size1, size1)
  one_bucket = Unsqueeze(bucket, axis0)
  buckets = Expand(one_bucket, wide)
""",
    scores=_FLAT_HEADS
    + """
  tiled{0} = Tile(positions{0}, times)
  near{0} = MatMul(q3{0}, tiled{0})
  taken{0} = GatherElements <axis = -1> (near{0}, buckets)
  both{0} = Add(raw{0}, taken{0})
  scores{0} = Reshape(both{0}, by_head{0})
""",
    more=", float[4, 4, 5] positions0, float[4, 4, 5] positions1",
)
"""A table per head is repeated for every sample, their number found as heads times batch over heads."""

ALIBI = _layers(
    between="""
  numbers = Cast <to = 1> (places)
  steep = Mul(slopes, numbers)
  samples_of = Concat <axis = 0> (size0, n4, size1)
  each = Expand(steep, samples_of)
  flat_bias = Concat <axis = 0> (batches0, axis1, size1)
  bias = Reshape(each, flat_bias)
""",
    scores=_FLAT_HEADS
    + """
  both{0} = Add(raw{0}, bias)
  scores{0} = Reshape(both{0}, by_head{0})
""",
    more=", float[4, 1] slopes",
)
"""Both layers add one bias that has samples and heads along one axis, as BLOOM does."""

LAST_POSITIONS = _layers(
    between="""
  first = Sub(n64, size1)
  start = {clamped}
  bias = Slice(slopes, start, far, axis2)
""",
    scores="""{between}
  raw{0} = MatMul(qt{0}, kt{0})
  scores{0} = Add(raw{0}, bias)
""",
    more=", float[4, 1, 64] slopes, int64[1] n64 = {64}, int64[1] axis2 = {2}, "
    "int64[1] far = {9223372036854775807}",
)
"""Both layers add the last positions of a table, as MPT does; ``{clamped}`` is the first of them."""

MEASURED_SCALE = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 16] q_proj, float[16, 16] k_proj, float[16, 16] v_proj, float[16, 16] out,
 int64[4] heads = {0, 0, 4, 4}, int64[3] joined = {0, 0, 16}>
{
  q = MatMul(x, q_proj)
  k = MatMul(x, k_proj)
  v = MatMul(x, v_proj)
  q4 = Reshape(q, heads)
  k4 = Reshape(k, heads)
  v4 = Reshape(v, heads)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  kt = Transpose <perm = [0, 2, 3, 1]> (k4)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  size = Shape <start = 3> (qt)
  number = Cast <to = 1> (size)
  root = Sqrt(number)
  scaled = Div(qt, root)
  scores = MatMul(scaled, kt)
  soft = Softmax <axis = -1> (scores)
  context = MatMul(soft, vt)
  ct = Transpose <perm = [0, 2, 1, 3]> (context)
  c = Reshape(ct, joined)
  o = MatMul(c, out)
  y = Add(x, o)
}
"""
