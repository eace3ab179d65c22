from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import texts
from cutting import TOLERANCE, narrowed, some_of, zeroed
from hypothesis import given

from graphcompress.analysis.linears import linears
from graphcompress.coupling.atoms.unify import Atoms
from graphcompress.coupling.couplings import FFN, HEAD, HIDDEN, OTHER, Group, couplings
from graphcompress.cutting.cut import cut
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import Size, reshape_target, size_of
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

# ---- oracle: zeroing a unit everywhere equals cutting it


def kinds(model: Model) -> dict[tuple[str, int], int]:
    counts: dict[tuple[str, int], int] = {}
    for group in couplings(model):
        counts[group.kind, group.size] = counts.get((group.kind, group.size), 0) + 1
    return counts


def outputs(model: Model, feed: Mapping[str, np.ndarray], folder: Path) -> np.ndarray:
    session = ort.InferenceSession(model.save(folder / "model.onnx"))
    return session.run(None, feed)[0]


def feeds(model: Model) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    made = []
    for batch, length in ((1, 5), (3, 9)):
        sizes = {"batch": batch, "sequence": length}
        feed = {}
        for value in model.graph.inputs:
            shape = [dim if isinstance(dim, int) else sizes[dim.value] for dim in value.shape]
            if value.dtype == ir.DataType.FLOAT:
                feed[value.name] = rng.standard_normal(shape).astype(np.float32)
            elif value.dtype == ir.DataType.BOOL:
                feed[value.name] = np.arange(length).reshape(1, 1, 1, -1).repeat(batch, 0) < length - 1
            else:
                ones = "mask" in value.name
                feed[value.name] = np.ones(shape, np.int64) if ones else rng.integers(0, 2, shape)
        made.append(feed)
    return made


def assert_cut_equals_zeroed(model: Model, folder: Path, groups: list[Group]) -> Model:
    keeps = some_of(groups)
    zero, narrow = zeroed(model, keeps), narrowed(model, keeps)
    for feed in feeds(model):
        before, expected, found = (outputs(item, feed, folder) for item in (model, zero, narrow))
        width = float(np.ptp(expected))
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * width, rtol=0)
        assert np.abs(before - expected).max() > 100 * TOLERANCE * width
    assert narrow.parameters < model.parameters
    return narrow


TWO_LAYERS = {(HEAD, 4): 2, (OTHER, 4): 4}
FORMS = {
    "mlp": (texts.MLP, 20, {(FFN, 24): 1}),
    "shared bias": (texts.SHARED_BIAS, 18, {(FFN, 24): 2}),
    "gated": (texts.GATED, 18, {(FFN, 24): 1}),
    "packed": (texts.PACKED, 18, {(HEAD, 4): 1, (OTHER, 4): 2}),
    "packed slices": (texts.PACKED_SLICES, 18, {(HEAD, 4): 1, (OTHER, 4): 2}),
    "grouped": (texts.GROUPED, 18, {(HEAD, 2): 1, (OTHER, 2): 1, (OTHER, 8): 2}),
    "operator": (texts.OPERATOR, 23, {(HEAD, 2): 1, (OTHER, 2): 1, (OTHER, 8): 1}),
    "relative bias": (texts.RELATIVE_BIAS, 18, {(HEAD, 4): 2, (OTHER, 4): 4}),
    "shared expand": (texts.SHARED_EXPAND, 18, {(HEAD, 4): 2, (OTHER, 4): 4}),
    "sinks": (texts.SINKS, 18, {(HEAD, 4): 1, (OTHER, 4): 2}),
    "ALiBi": (texts.ALIBI, 18, TWO_LAYERS),
    "last positions": (texts.LAST_POSITIONS.replace("{clamped}", "Max(axis0, first)"), 18, TWO_LAYERS),
    "last positions, not clamped": (
        texts.LAST_POSITIONS.replace("{clamped}", "Identity(first)"),
        18,
        TWO_LAYERS,
    ),
    "measured scale": (texts.MEASURED_SCALE, 18, {(HEAD, 4): 1, (OTHER, 4): 1}),
}


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_every_form(form):
    text, opset, expected = FORMS[form]
    assert kinds(texts.model_of(text, opset=opset)) == expected


@pytest.mark.parametrize("form", FORMS)
def test_cut_equals_zeroed(form, tmp_path):
    text, opset, _ = FORMS[form]
    model = texts.model_of(text, opset=opset)
    assert_cut_equals_zeroed(model, tmp_path, couplings(model))


@pytest.mark.parametrize("kind", [FFN, HEAD, OTHER])
def test_cut_of_bert_equals_zeroed(kind, tiny_bert, tmp_path):
    groups = [group for group in couplings(tiny_bert) if group.kind == kind]
    assert_cut_equals_zeroed(tiny_bert, tmp_path, groups)


def test_groups_of_bert(tiny_bert):
    assert kinds(tiny_bert) == {(FFN, 64): 2, (HEAD, 4): 2, (OTHER, 8): 4}
    ffn = next(group for group in couplings(tiny_bert) if group.kind == FFN)
    assert [linear.name for linear in ffn.producers] == [ffn.name]
    assert ffn.name.startswith("encoder.layer.0.intermediate.dense.weight")
    assert [linear.name.split(".w")[0] for linear in ffn.consumers] == ["encoder.layer.0.output.dense"]
    assert {part.value.name.rsplit(".", 1)[0] for part in ffn.slices} == {
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
    }


def test_an_output_of_undeclared_sizes_is_a_residual_stream(tmp_path):
    text = texts.MLP.replace("=> (float[batch, sequence, 16] y)", "=> (float[d0, d1, d2] y)")
    assert text != texts.MLP
    model = texts.model_of(text, opset=20)
    assert kinds(model) == {(FFN, 24): 1}
    assert_cut_equals_zeroed(model, tmp_path, couplings(model))


def test_hidden_width_is_a_group_when_it_is_not_an_output(tiny_bert, tmp_path):
    with Rewriter(tiny_bert, Context()) as rw:
        weight = rw.constant(np.random.default_rng(0).standard_normal((32, 3)).astype(np.float32), "classes")
        tiny_bert.graph.outputs[0] = rw.at(None).op(
            "MatMul", tiny_bert.graph.outputs[0], weight, name="logits"
        )
        tiny_bert.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    hidden = [group for group in couplings(tiny_bert) if group.kind == HIDDEN]
    assert [(group.size, group.exact) for group in hidden] == [(32, False)]
    narrow = narrowed(tiny_bert, some_of(hidden))
    assert outputs(narrow, feeds(narrow)[1], tmp_path).shape == (3, 9, 3)
    assert narrow.parameters < tiny_bert.parameters


def test_cut_twice_composes_what_was_kept(tmp_path):
    model = texts.model_of(texts.MLP, opset=20)
    first = np.arange(24) % 2 == 0
    second = np.arange(12) % 3 == 0
    once = narrowed(model, {"up": first})
    twice = narrowed(once, {"up": second})
    kept = np.flatnonzero(first)[second]
    np.testing.assert_array_equal(twice.kept["up"][1], kept)
    np.testing.assert_array_equal(twice.kept["c"][2], kept)
    at_once = narrowed(model, {"up": np.isin(np.arange(24), kept)})
    feed = feeds(model)[0]
    np.testing.assert_array_equal(outputs(twice, feed, tmp_path), outputs(at_once, feed, tmp_path))


def test_heads_of_layers_that_share_a_bias_are_cut_apart_and_again(tmp_path):
    model = texts.model_of(texts.RELATIVE_BIAS)
    names = [group.name for group in couplings(model) if group.kind == HEAD]
    keeps = {names[0]: np.array([True, False, True, True]), names[1]: np.array([False, False, False, True])}
    once = narrowed(model, keeps)
    table = once.graph.initializers["table"]
    assert list(table.shape) == [5, 4]
    looked_up = [node for node in once.graph if node.op_type == "Gather" and node.inputs[0] is not table]
    assert [node.inputs[1].const_value.numpy().tolist() for node in looked_up] == [[0, 2, 3], [3]]
    assert (HEAD, 3) in kinds(once)
    twice = narrowed(once, {names[0]: np.array([True, False, True])})
    at_once = narrowed(model, {**keeps, names[0]: np.array([True, False, False, True])})
    feed = feeds(model)[1]
    np.testing.assert_array_equal(outputs(twice, feed, tmp_path), outputs(at_once, feed, tmp_path))


def test_a_stored_bias_of_one_reader_is_cut_itself(tmp_path):
    """Also where the heads of that layer are tied to those of another by something else."""
    text = texts.RELATIVE_BIAS.replace(
        "scores1 = Add(raw1, bias)", "more = Add(bias, fixed)\n  scores1 = Add(raw1, more)"
    )
    model = texts.model_of(text.replace("float[5, 4] table", "float[5, 4] table, float[4, 1, 1] fixed"))
    assert kinds(model)[HEAD, 4] == 2
    assert_cut_equals_zeroed(model, tmp_path, [group for group in couplings(model) if group.kind == HEAD])


def test_a_batch_found_by_dividing_by_the_heads_does_not_fix_them(tmp_path):
    model = texts.model_of(texts.TILED_POSITIONS)
    assert kinds(model)[HEAD, 4] == 1
    Simplify().run(model, Context())
    assert kinds(model)[HEAD, 4] == 2
    assert_cut_equals_zeroed(model, tmp_path, [group for group in couplings(model) if group.kind == HEAD])


MEASURES_ITS_NODES = """
g (float[batch, sequence, 16] x, int64 chosen) => (float[batch, sequence, 16] y, int64[1] seen)
<float[16, 24] up, float[24, 16] down, float[96] table, float[1] fill = {1}, int64[1] rest = {-1},
 int64[1] at0 = {0}, int64[1] at1 = {1}, int64[1] at2 = {2}, int64[1] all = {96}> {
  h = MatMul (x, up)
  shape = Shape (h)
  nodes = Gather <axis = 0> (shape, at2)
  BODY
  active = Relu (h)
  raw = MatMul (active, down)
  y = Add (raw, sum)
  seen = Identity (at0)
}"""
SUM = "sum = ReduceSum <keepdims = 0> (part)"
COMPUTES_WITH_ITS_NODES = {
    "a slice": f"part = Slice (table, at0, nodes, at0) {SUM}",
    "a slice that the caller bounds": f"""size = Gather <axis = 0> (shape, chosen) one = Unsqueeze (size, at0)
        part = Slice (table, at0, one, at0) {SUM}""",
    "a new tensor": f"part = ConstantOfShape <value = float[1] {{1}}> (nodes) {SUM}",
    "a split": f"""left = Sub (all, nodes) sizes = Concat <axis = 0> (nodes, left)
        part, other = Split <axis = 0> (table, sizes) {SUM}""",
    "a square": f"""squares = Mul (shape, shape) square = Gather <axis = 0> (squares, at2)
        part = ConstantOfShape <value = float[1] {{1}}> (square) {SUM}""",
    "a count of elements": "count = Size (h) sum = Cast <to = 1> (count)",
    "a size of the caller's choice": f"""size = Gather <axis = 0> (shape, chosen) one = Unsqueeze (size, at0)
        part = Expand (fill, one) {SUM}""",
    "two sizes to be found": f"""size = Gather <axis = 0> (shape, chosen) one = Unsqueeze (size, at0)
        sizes = Concat <axis = 0> (one, rest) part = Reshape (x, sizes) {SUM}""",
    "a branch": """yes = Constant <value = bool {1}> ()
        sum = If (yes) <then_branch = a () => (p) {p = Cast <to = 1> (nodes)}, else_branch = b () => (q)
        {q = Identity (fill)}>""",
    "an expansion": f"part = Expand (fill, nodes) {SUM}",
    "an expansion of the last axis": f"part = Expand (h, nodes) {SUM}",
    "rows": f"""sizes = Concat <axis = 0> (rest, nodes) rows = Reshape (table, sizes)
        part = ReduceMax <keepdims = 0> (rows, at1) {SUM}""",
}
FOLLOWED = ("a slice", "a split", "an expansion", "an expansion of the last axis", "rows")


@pytest.mark.parametrize("body", COMPUTES_WITH_ITS_NODES)
def test_a_number_of_nodes_that_the_graph_computes_with_stays_what_it_was(body, tmp_path):
    model = texts.model_of(MEASURES_ITS_NODES.replace("BODY", COMPUTES_WITH_ITS_NODES[body]))
    groups = couplings(model)
    assert [group.size for group in groups] == ([24] if body in FOLLOWED else [])
    keeps = some_of(groups)
    zero, narrow = zeroed(model, keeps), narrowed(model, keeps)
    feed = {"x": np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)}
    feed["chosen"] = np.array(2 if body != "two sizes to be found" else 0)
    expected, found = (outputs(item, feed, tmp_path) for item in (zero, narrow))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * float(np.ptp(expected)), rtol=0)


def test_a_number_of_nodes_that_is_shown_stays_what_it_was():
    text = MEASURES_ITS_NODES.replace("BODY", "sum = Identity (fill)").replace("(at0)\n}", "(nodes)\n}")
    assert couplings(texts.model_of(text)) == []


BATCH_AND_HEADS_IN_ONE = """
g (float[batch, sequence, 32] x) => (float[batch, sequence, 32] y)
<float[32, 96] w, float[32, 32] out, int64[4] apart = {0, 0, 4, 8}, int64[1] rest = {-1},
 int64[1] eight = {8},
 int64[1] one = {1}, int64[1] two = {2}, int64[2] split = {-1, 4}, int64[3] joined = {0, 0, 32}> {
  packed = MatMul (x, w)
  q, k, v = Split <axis = 2, num_outputs = 3> (packed)
  q4 = Reshape (q, apart)       k4 = Reshape (k, apart)       v4 = Reshape (v, apart)
  qt = Transpose <perm = [0, 2, 1, 3]> (q4)
  kt = Transpose <perm = [0, 2, 1, 3]> (k4)
  vt = Transpose <perm = [0, 2, 1, 3]> (v4)
  qs = Shape (qt)               ks = Shape (kt)               vs = Shape (vt)
  ql = Gather (qs, two)         kl = Gather (ks, two)         vl = Gather (vs, two)
  qz = Concat <axis = 0> (rest, ql, eight)
  kz = Concat <axis = 0> (rest, kl, eight)
  vz = Concat <axis = 0> (rest, vl, eight)
  qf = Reshape (qt, qz)         kf = Reshape (kt, kz)         vf = Reshape (vt, vz)
  turned = Transpose <perm = [0, 2, 1]> (kf)
  scores = MatMul (qf, turned)
  shares = Softmax (scores)
  mixed = MatMul (shares, vf)
  ms = Shape (mixed)
  ml = Gather (ms, one)
  mz = Concat <axis = 0> (split, ml, eight)
  m4 = Reshape (mixed, mz)
  mt = Transpose <perm = [0, 2, 1, 3]> (m4)
  flat = Reshape (mt, joined)
  y = MatMul (flat, out)
}"""


@pytest.mark.parametrize("name", ["sequence", "2*S"])
def test_a_size_that_stays_is_read_at_run_time_whatever_it_is_called(name, tmp_path):
    model = texts.model_of(BATCH_AND_HEADS_IN_ONE)
    model.graph.inputs[0].shape = ir.Shape(["batch", name, 32])
    model.graph.outputs[0].shape = None
    model.infer_shapes()
    groups = [group for group in couplings(model) if group.kind == HEAD]
    assert [group.size for group in groups] == [4]
    keeps = some_of(groups)
    zero, narrow = zeroed(model, keeps), narrowed(model, keeps)
    for batch, length in ((1, 5), (3, 9), (2, 1)):
        x = np.random.default_rng(1).standard_normal((batch, length, 32)).astype(np.float32)
        expected, found = (outputs(item, {"x": x}, tmp_path) for item in (zero, narrow))
        np.testing.assert_allclose(found, expected, atol=TOLERANCE * float(np.ptp(expected)), rtol=0)


def test_one_layers_bias_is_cut_itself():
    text = texts.RELATIVE_BIAS.replace("scores1 = Add(raw1, bias)", "scores1 = Identity(raw1)")
    model = texts.model_of(text)
    narrow = narrowed(model, some_of([group for group in couplings(model) if group.kind == HEAD]))
    assert narrow.graph.initializers["table"].shape[1] < 4
    assert [node.op_type for node in narrow.graph].count("Gather") == 1


def test_cut_of_nothing_edits_nothing():
    model = texts.model_of(texts.MLP, opset=20)
    rw = Rewriter(model, Context())
    cut(rw, {couplings(model)[0]: np.ones(24, bool)})
    assert not rw.modified


@pytest.mark.parametrize(
    ("keep", "message"), [(np.ones(3, bool), "24 units"), (np.zeros(24, bool), "at least one")]
)
def test_cut_refuses_a_mask_that_does_not_fit(keep, message):
    model = texts.model_of(texts.MLP, opset=20)
    with pytest.raises(ValueError, match=message):
        cut(Rewriter(model, Context()), {couplings(model)[0]: keep})


def test_unknown_operator_blocks():
    model = texts.model_of(texts.MLP.replace("Gelu(b)", "com.example.Mystery(b)"))
    assert couplings(model) == []


def test_softmax_over_nodes_blocks():
    model = texts.model_of(texts.MLP.replace("Gelu(b)", "Softmax <axis = -1> (b)"))
    assert couplings(model) == []


# ---- weights that are expressions


def with_kronecker(model: Model, rank: int = 3) -> Model:
    """``up`` [16, 24] as a sum of Kronecker products of [2, 4] and [8, 6]."""
    rng = np.random.default_rng(5)
    linear = next(linear for linear in linears(model) if linear.name == "up")
    with Rewriter(model, Context()) as rw:
        a = rw.constant((0.3 * rng.standard_normal((8, rank))).astype(np.float32), "left")
        b = rw.constant((0.3 * rng.standard_normal((rank, 48))).astype(np.float32), "right")
        grid = rw.constant(np.array([2, 4, 8, 6]), "grid")
        sizes = rw.constant(np.array([16, 24]), "sizes")
        before = linear.node
        value = rw.at(before).op("MatMul", a, b, name="terms")
        value = rw.at(before).op("Reshape", value, grid, name="grid_of_terms")
        value = rw.at(before).op("Transpose", value, perm=[0, 2, 1, 3], name="turned")
        value = rw.at(before).op("Reshape", value, sizes, name="dense")
        rw.set_weight(linear, value)
    return model


def test_kronecker_weight_has_an_atom_per_factor_and_its_rank(tmp_path):
    model = with_kronecker(texts.model_of(texts.MLP, opset=20))
    assert kinds(model) == {(FFN, 4): 1, (FFN, 6): 1, (OTHER, 3): 1}
    narrow = assert_cut_equals_zeroed(model, tmp_path, couplings(model))
    stored = {value.name: list(value.shape) for value in narrow.initializers()}
    assert stored["left"][0] == 2 * (stored["up_bias"][0] // (stored["right"][1] // 8))


# ---- reshape targets


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["batch", "sequence", 48], ["batch", "sequence", 4, 12], [0, 0, 4, 12]),
        (["batch", 12, "sequence", 4], ["12*batch", "sequence", 4], None),
        (["batch", 12, "sequence", 4], ["batch", "12*sequence", 4], [0, -1, 4]),
        (["batch", "sequence", 48], ["batch*sequence", 48], [-1, 48]),
        (["a", "b"], ["b", "a"], None),
        (["a", 0], [0], None),
    ],
)
def test_reshape_target(before, after, expected):
    shapes = [
        [size if isinstance(size, int) else ir.SymbolicDim(size) for size in s] for s in (before, after)
    ]
    assert reshape_target(*shapes) == expected


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12*batch", Size(12, ("batch",))),
        ("batch*sequence", Size(1, ("batch", "sequence"))),
        ("2*(sequence + 1)", Size(2, ("sequence + 1",))),
        ("sequence + 1", Size(1, ("sequence + 1",))),
        ("sequence + past", Size(1, ("past + sequence",))),
        ("Min(512, 2*n)", Size(1, ("Min(512, 2*n)",))),
    ],
)
def test_size_of_a_symbol(text, size):
    assert size_of(ir.SymbolicDim(text)) == size
    assert size_of(size.dim()) == size


# ---- the unification, against index arithmetic


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[tuple[str, list[int]]]]:
    """A shape, and Reshapes and Transposes that follow from it."""
    factors = draw(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=2, max_size=4))
    shape, steps = list(factors), []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            order = draw(st.permutations(range(len(shape))))
            shape = [shape[axis] for axis in order]
            steps.append(("transpose", list(order)))
        else:
            shape = draw(regroupings(shape))
            steps.append(("reshape", shape))
    return factors, steps


@st.composite
def regroupings(draw: st.DrawFn, shape: list[int]) -> list[int]:
    """Another shape of as many elements: neighbours joined, or axes split."""
    primes = [prime for size in shape for prime in draw(st.permutations(primes_of(size)))]
    groups = [[primes[0]]] if primes else [[]]
    for prime in primes[1:]:
        if draw(st.booleans()):
            groups.append([])
        groups[-1].append(prime)
    return [int(np.prod(group)) for group in groups]


def primes_of(number: int) -> list[int]:
    for prime in (2, 3):
        if number % prime == 0:
            return [prime, *primes_of(number // prime)]
    return []


@given(chains())
def test_units_agree_with_index_arithmetic(chain):
    """A unit of a leaf at the end of a chain is the same set of elements as at its beginning."""
    start, steps = chain
    atoms = Atoms()
    first = [atoms.new(Size(size)) for size in start]
    axes, array = list(first), np.arange(int(np.prod(start))).reshape(start)
    for name, argument in steps:
        if name == "transpose":
            axes, array = [axes[axis] for axis in argument], array.transpose(argument)
        else:
            after = [atoms.new(Size(size)) for size in argument]
            atoms.match(axes, after)
            axes, array = after, array.reshape(argument)
    elements = np.arange(array.size).reshape(start)
    for leaf in {leaf for atom in first for leaf in atoms.leaves(atom)}:
        if atoms.marks(leaf) or atoms.size(leaf).number == 1:
            continue
        for unit in range(atoms.size(leaf).number):
            before = element_set(atoms, first, elements, leaf, unit)
            assert before
            assert before == element_set(atoms, axes, array, leaf, unit)


def element_set(atoms: Atoms, axes: list[int], array: np.ndarray, leaf: int, unit: int) -> set[int]:
    found = set()
    for axis, atom in enumerate(axes):
        picked = np.flatnonzero(atoms.units(atom, leaf) == unit)
        found.update(np.take(array, picked, axis=axis).reshape(-1).tolist())
    return found


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5), st.lists(st.integers(1, 6), min_size=1, max_size=5)
)
def test_segments_of_two_concatenations_agree(left, right):
    """Cutting one axis in two ways leaves pieces that lie at the same indices in both."""
    missing = sum(left) - sum(right)
    (right if missing > 0 else left).append(abs(missing) or 1)
    if missing == 0:
        right.append(1)
    atoms = Atoms()
    one, other = (atoms.concat([atoms.new(Size(size)) for size in sizes]) for sizes in (left, right))
    atoms.unify(one, other)
    borders = set(np.cumsum(left)) | set(np.cumsum(right))
    assert [atoms.size(leaf).number for leaf in atoms.leaves(one)] == np.diff([0, *sorted(borders)]).tolist()
    for leaf in atoms.leaves(one):
        np.testing.assert_array_equal(atoms.units(one, leaf), atoms.units(other, leaf))


def test_segments_are_matched_with_a_product():
    """[3·4·5] = concatenation of three 20s, each 4·5: the 3 is cut, the 4 and the 5 are shared."""
    atoms = Atoms()
    packed = atoms.product([atoms.new(Size(size)) for size in (3, 4, 5)])
    parts = [atoms.new(Size(20)) for _ in range(3)]
    atoms.unify(packed, atoms.concat(parts))
    sizes = [
        [atoms.size(leaf).number for leaf in atoms.leaves(part) if atoms.size(leaf).number > 1]
        for part in parts
    ]
    assert sizes == [[4, 5]] * 3
    assert len({leaf for part in parts for leaf in atoms.leaves(part) if atoms.size(leaf).number > 1}) == 2


def test_what_does_not_match_is_blocked():
    atoms = Atoms()
    left = [atoms.new(Size(size)) for size in (4, 9)]
    right = [atoms.new(Size(size)) for size in (6, 6)]
    atoms.match(left, right)
    assert all(atoms.marks(leaf) for atom in (*left, *right) for leaf in atoms.leaves(atom))
