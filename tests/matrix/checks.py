"""The columns of the matrix: a function each, which gives a figure or a reason or raises NotHeldError."""

from __future__ import annotations

import glob
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cutting
import numpy as np
import onnx

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.build.optimize import optimize
from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.errors import UnsupportedModelError
from graphcompress.graph.model import Model
from graphcompress.measure.verify import compare
from graphcompress.numerics.kronecker import nearest, splits
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Skipped
from graphcompress.rewrite.kronecker import write_expression
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.cpu.cpu import Cpu
from matrix import tools
from matrix.goals import goals_are_reached
from matrix.subject import EXACT, NotHeldError, Subject, largest_error, run
from matrix.training import blocks_are_cut, fx_is_runtime

INT8_DB = 20.0
RATIO = 0.25


@dataclass(frozen=True)
class Result:
    """One cell: ``ok`` with a figure, ``left`` with the library's reason too, ``fails`` with why."""

    state: str
    text: str
    note: str = ""


def check(name: str, subject: Subject) -> Result:
    """The cell of one column; whatever goes wrong in it is its failure, and the other cells still run."""
    if subject.refusal:
        return Result("left", "", subject.refusal)
    if name not in STATIC and subject.obstacle:
        return Result("left", "", subject.obstacle)
    try:
        text, reasons = CHECKS[name](subject)
    except NotHeldError as error:
        return Result("fails", str(error))
    except Exception as error:
        return Result("fails", f"{type(error).__name__}: {error}")
    return Result("left", text, "; ".join(reasons)) if reasons else Result("ok", text)


STATIC = ("linears", "embeddings", "attentions", "groups")
"""Columns that do not run the model."""

Answer = tuple[str, list[str]]
"""A figure, and the reasons that the library gave for what it left alone."""


# ---- what is found


def found_linears(subject: Subject) -> Answer:
    """Linears are the source's nn.Linear and Conv1D."""
    expected = subject.calls.get("linears", Counter())
    for model in subject.analysed():
        _same(expected, Counter((item.in_features, item.out_features) for item in linears(model)))
    return f"{expected.total()}", []


def found_embeddings(subject: Subject) -> Answer:
    """Embeddings are the source's nn.Embedding."""
    expected = subject.calls.get("embeddings", Counter())
    whole = {item.name: item.rows for item in embeddings(subject.load())}
    for model in subject.analysed():
        if not any(node.op_type == "GatherND" for node in model.graph):  # simplify makes a Gather of it
            # Rows that no input reaches are cut: a table of token types of which one alone is used.
            rows = {
                item: whole.get(item.name, 0) if item.name in model.kept else 0 for item in embeddings(model)
            }
            _same(expected, Counter((max(item.rows, before), item.width) for item, before in rows.items()))
    return f"{expected.total()}", []


def found_attentions(subject: Subject) -> Answer:
    """Attentions have the source's heads and key/value heads."""
    expected = Counter(subject.export.architecture.heads)
    for model in subject.analysed():
        _same(expected, Counter((item.num_heads, item.kv_heads) for item in attentions(model)))
    return _heads(expected), []


def _heads(counts: Counter[tuple[int, int]]) -> str:
    parts = []
    for (heads, groups), count in sorted(counts.items()):
        parts.append(f"{count} × {heads}" + (f"/{groups}" if groups != heads else ""))
    return ", ".join(parts)


def found_groups(subject: Subject) -> Answer:
    """FFN nodes and heads can be cut per layer as the configuration says."""
    architecture = subject.export.architecture
    groups = architecture.head_groups
    heads = [group for _, group in architecture.heads] if groups is None else groups
    found = couplings(subject.simplified())
    _same(Counter(architecture.ffn), Counter(group.size for group in found if group.kind == FFN), "FFN ")
    _same(Counter(heads), Counter(group.size for group in found if group.kind == HEAD), "heads ")
    text = f"FFN {_counted(architecture.ffn)}"
    return (f"{text}, heads {_counted(heads)}" if heads else text), []


def _counted(sizes: Iterable[int]) -> str:
    return ", ".join(f"{count} × {size}" for size, count in sorted(Counter(sizes).items()))


def _same(expected: Counter, found: Counter, what: str = "") -> None:
    if expected != found:
        missing, extra = expected - found, found - expected
        parts = [f"{what}missing {dict(missing)}"] if missing else []
        raise NotHeldError("; ".join(parts + ([f"{what}not in the source {dict(extra)}"] if extra else [])))


# ---- what is changed


def simplify_is_exact(subject: Subject) -> Answer:
    """``simplify`` changes no output."""
    error = largest_error(subject.expected, run(subject.simplified(), subject.feeds))
    _at_most(error, subject.exact)
    return f"{error:.0e}", []


def fewest_nodes(subject: Subject) -> Answer:
    """No other simplifier leaves fewer nodes with the same outputs (their best in brackets).

    Nodes that pick positions, so that fewer of them are computed, are not counted.
    """
    picks = {"needed", "turned", "places", "row", "rows", "position"}
    names = [node.outputs[0].name or "" for node in subject.simplified().graph]
    left = sum(name.rpartition(".")[2] not in picks for name in names)
    others = tools.counts(onnx.load(subject.export.path), subject.feeds, subject.exact)
    counts = [count for count in others.values() if isinstance(count, int)]
    best = min(counts, default=left)
    if left > best:
        names = [name for name, count in others.items() if count == best]
        raise NotHeldError(f"{left} nodes, {names[0]} leaves {best}")
    return f"{left} ({best})" if counts else f"{left}", []


def cut_is_masked(subject: Subject) -> Answer:
    """Removing units of every group equals zeroing their weights."""
    worst, limit = 0.0, cutting.TOLERANCE * subject.exact / EXACT
    for model in subject.analysed():
        keeps = cutting.some_of([group for group in couplings(model) if group.exact])
        expected = run(cutting.zeroed(model, keeps), subject.feeds)
        if not largest_error(subject.expected, expected) > max(100 * cutting.TOLERANCE, 2 * limit):
            raise NotHeldError("zeroing units changes nothing: nothing was tested")
        worst = max(worst, largest_error(expected, run(cutting.narrowed(model, keeps), subject.feeds)))
    _at_most(worst, limit)
    return f"{worst:.0e}", []


def every_group_is_exact(subject: Subject) -> Answer:
    """One unit of every group by itself: without weights in producer and reader, or gone, is the same."""
    model, limit = subject.simplified(), cutting.TOLERANCE * subject.exact / EXACT
    feeds = subject.feeds[:2]
    groups = [group for group in couplings(model) if group.exact]
    for number, group in enumerate(groups):
        keep = np.arange(group.size) != number % group.size
        expected, found = (
            run(made(model, {group.name: keep}), feeds) for made in (cutting.zeroed, cutting.narrowed)
        )
        _at_most(largest_error(expected, found), limit)
    return f"{len(groups)}", []


def dead_units_go(subject: Subject) -> Answer:
    """Heads and FFN nodes without weights in their reader, their producer or both go, and no output moves."""
    model, limit = subject.simplified(), cutting.TOLERANCE * subject.exact / EXACT
    groups = [group for group in couplings(model) if group.kind in (FFN, HEAD)]
    gone, reasons = 0, dict[str, None]()
    for seed, side in enumerate(cutting.SIDES):
        keeps = cutting.some_of(groups, seed)
        silent = cutting.silenced(model, keeps, side)
        expected = run(silent, subject.feeds)
        record = Prune(round_to=1).run(silent, Context())
        _at_most(largest_error(expected, run(silent, subject.feeds)), limit)
        left = dict.fromkeys(keeps, 1)  # what one unit is left of is no group any more
        left |= {group.name: group.size for group in couplings(silent) if group.kind in (FFN, HEAD)}
        gone += sum(group.size - left[group.name] for group in groups)
        why = {item.name: item.reason for item in record.skipped}
        for name, keep in keeps.items() if side != "producers" else ():
            if left[name] > keep.sum() and name not in why:
                raise NotHeldError(f"{left[name]} units of {name} are left, {keep.sum()} have weights")
            reasons |= {why[name]: None} if name in why else {}
    return f"{gone}", list(reasons)


def pruned_runs(subject: Subject) -> Answer:
    """After a quarter is pruned the model runs at other batch sizes and lengths."""
    model = subject.simplified()
    before = model.parameters
    record = Prune(ffn=RATIO, heads=RATIO).run(model, Context())
    outputs = run(model, subject.feeds)
    for one, other in zip(subject.expected, outputs, strict=True):
        shapes = {name: outputs.left_of(name, array).shape for name, array in one.items()}
        if {name: array.shape for name, array in other.items()} != shapes:
            raise NotHeldError("the outputs have other shapes")
        if any(np.isnan(other[name]).sum() > np.isnan(array).sum() for name, array in one.items()):
            raise NotHeldError("the outputs are not finite")
    if model.parameters == before and not record.skipped:
        raise NotHeldError("nothing was pruned and no reason given")
    return f"-{1 - model.parameters / before:.0%}", _reasons(record.skipped)


def _reasons(skipped: Iterable[Skipped]) -> list[str]:
    return list(dict.fromkeys(item.reason for item in skipped))


def kron_is_dense(subject: Subject) -> Answer:
    """A sum of Kronecker products with all its terms is the weight."""
    model = subject.simplified()
    made = {}
    with Rewriter(model, Context()) as rw:
        for linear in linears(model):
            found = [
                split for split in splits(linear.in_features, linear.out_features) if split.full_rank > 1
            ]
            if not found or linear.weight.dtype is None:
                continue
            if (linear.weight, linear.transposed) not in made:
                factors = nearest(linear.dense(), found[len(found) // 2], found[len(found) // 2].full_rank)
                weight = write_expression(rw, factors, linear.name, linear.weight.dtype, before=linear.node)
                made[linear.weight, linear.transposed] = weight
            rw.set_weight(linear, made[linear.weight, linear.transposed])
    error = largest_error(subject.expected, run(model, subject.feeds))
    _at_most(error, subject.exact)
    if len(linears(model)) != subject.calls["linears"].total():
        raise NotHeldError("linears are not found with factors as weights")
    return f"{error:.0e}", []


def int8_is_close(subject: Subject) -> Answer:
    """``int8`` keeps 20 dB."""
    model = subject.simplified()
    record = Int8().run(model, Context(subject.samples, Cpu().capabilities))
    difference = compare(subject.expected, _iterated(run(model, subject.feeds)), subject.feeds)
    if difference.sqnr_db < INT8_DB:
        raise NotHeldError(f"{difference.sqnr_db:.1f} dB")
    return f"{difference.sqnr_db:.0f} dB", [] if record.touched else _reasons(record.skipped)


def _iterated(outputs: list[dict[str, np.ndarray]]) -> Callable[[object], dict[str, np.ndarray]]:
    recorded = iter(outputs)
    return lambda feed: next(recorded)


# ---- what is promised


def interface_stays(subject: Subject) -> Answer:
    """Names, types, dynamic sizes and metadata stay, and the full checker accepts the result."""
    after = onnx.load_from_string(subject.once("compressed", lambda: _saved(compressed(subject))))
    onnx.checker.check_model(after, full_check=True)
    before = onnx.load(subject.export.path)
    for kind in ("input", "output"):
        one, other = ([_described(v) for v in getattr(proto.graph, kind)] for proto in (before, after))
        if one != other:
            raise NotHeldError(f"{kind}s changed from {one} to {other}")
    if _metadata(before) != _metadata(after):
        raise NotHeldError(f"metadata changed from {_metadata(before)} to {_metadata(after)}")
    return "", []


def _described(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
    tensor = value.type.tensor_type
    # Heads that were cut are gone from the caches of keys and values, too.
    is_cache = value.name.startswith(("past_key_values", "present"))
    sizes = [dim.dim_param or (0 if is_cache else dim.dim_value) for dim in tensor.shape.dim]
    return value.name, tensor.elem_type, sizes


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    return {item.key: item.value for item in proto.metadata_props}


def compressed(subject: Subject) -> Model:
    """The export after every pass: one linear factored, a quarter pruned, the rest quantised."""
    model = subject.load()
    factored = Kron(ratio=0.2, only=glob.escape(linears(subject.simplified())[0].name))
    passes: list[Pass] = [Simplify(), factored, Prune(ffn=RATIO, heads=RATIO), Int8()]
    ctx = Context(subject.samples, Cpu().capabilities)
    Pipeline(passes).run(model, ctx, allow=[step.name for step in passes])
    return model


def same_twice(subject: Subject) -> Answer:
    """Two runs give the same bytes."""
    first = subject.once("compressed", lambda: _saved(compressed(subject)))
    if _saved(compressed(subject)) != first:
        raise NotHeldError("two runs differ")
    return "", []


def _saved(model: Model) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return model.save(Path(folder) / "model.onnx").read_bytes()


def again_is_harmless(subject: Subject) -> Answer:
    """``optimize`` on its own output changes nothing, or refuses an int8 one."""
    target = Cpu(measure=False)
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder) / name for name in ("once", "twice", "int8", "refused")]
        once = optimize(subject.export.path, "simplify", target=target, output=names[0])
        twice = optimize(names[0] / "model.onnx", "simplify", target=target, output=names[1])
        counts = [len(onnx.load(name / "model.onnx").graph.node) for name in names[:2]]
        _at_most(max(it.lowered[0].difference.max_relative_error for it in (once, twice)), subject.exact)
        if counts[1] > counts[0]:
            raise NotHeldError(f"{counts[0]} nodes became {counts[1]}")
        build = optimize(subject.export.path, "int8", target=target, output=names[2], allow=["int8"])
        if not build.records[-1].touched:
            return "", _reasons(build.records[-1].skipped)
        try:
            optimize(names[2] / "model.onnx", "int8", target=target, output=names[3])
        except UnsupportedModelError as error:
            if "quantised already" not in str(error):
                raise
            return "", []
    raise NotHeldError("an int8 artifact was quantised again")


def _at_most(error: float, limit: float) -> None:
    if not error <= limit:
        raise NotHeldError(f"largest error {error:.1e} of the output range, {limit:.0e} is allowed")


CHECKS: dict[str, Callable[[Subject], Answer]] = {
    "linears": found_linears,
    "embeddings": found_embeddings,
    "attentions": found_attentions,
    "groups": found_groups,
    "cut = masked": cut_is_masked,
    "every group": every_group_is_exact,
    "dead units": dead_units_go,
    "25 % pruned": pruned_runs,
    "goals": goals_are_reached,
    "blocks = cut": blocks_are_cut,
    "kron = dense": kron_is_dense,
    "int8": int8_is_close,
    "simplify": simplify_is_exact,
    "to_fx": fx_is_runtime,
    "nodes": fewest_nodes,
    "interface": interface_stays,
    "twice": same_twice,
    "again": again_is_harmless,
}
"""Column → check."""
