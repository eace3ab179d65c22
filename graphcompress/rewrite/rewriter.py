"""Every edit of a graph goes through a Rewriter, so that what changed, and why not, is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import NAME_KEY, Embedding, Linear
from graphcompress.graph.expressions import Constants
from graphcompress.graph.inference import overridable
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record, Skipped, Touched
from graphcompress.rewrite.builder import AttributeValue, Builder

Subject = Linear | Embedding | str


class Rewriter:
    """Edits one model for one pass and keeps the record of what was touched and what was left alone.

    Use as a context manager: on leaving, when anything was modified, dead nodes and weights are removed, the
    nodes are sorted and shapes are inferred again.
    """

    def __init__(self, model: Model, ctx: Context) -> None:
        self.model = model
        self.ctx = ctx
        self.modified = False
        self._constants = Constants()
        self.touched: list[Touched] = []
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.results: list[str] = []
        self.plan = ""
        self.curves: dict[str, tuple[tuple[int, float], ...]] = {}
        self._names: set[str | None] = set()  # all names in the model, once one has to be unlike them

    def __enter__(self) -> Rewriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After an exception the graph may be half rewritten: cleaning it could raise another error and hide
        # the first.
        if kind is None and self.modified:
            self.clean()

    def adopt(self, other: Rewriter) -> None:
        """Let the model be what ``other`` has made of a copy of it, with what it recorded."""
        self.model.ir, self.model.kept = other.model.ir, other.model.kept
        self.model.declared = other.model.declared
        self.touched, self.skipped = other.touched, other.skipped
        self.notes, self.results = other.notes, other.results
        self._constants, self._names = Constants(), set()
        self.modified = True

    # ---- the record

    def touch(self, subject: Subject, detail: str = "", **figures: float) -> None:
        """Record that ``subject`` is rewritten; call it before the edit, while it can be counted."""
        self.touched.append(Touched(_name(subject), _parameters(subject), detail, figures))

    def skip(self, subject: Subject, reason: str, **figures: float) -> None:
        """Record that ``subject`` is left alone, and why."""
        self.skipped.append(Skipped(_name(subject), reason, _parameters(subject), figures))

    def note(self, text: str) -> None:
        """Tell the user something about this run of the pass, such as what a stronger setting would bring."""
        self.notes.append(text)

    def result(self, text: str) -> None:
        """Tell what came of it in the end: a note that the line about the pass in the summary holds, too."""
        self.note(text)
        self.results.append(text)

    def curve(self, label: str, points: Iterable[tuple[int, float]]) -> None:
        """Tell what was evaluated while something was learned: the step, and the value."""
        self.curves[label] = tuple(points)

    @property
    def record(self) -> Record:
        """All that was recorded so far; what a pass returns."""
        return Record(
            touched=tuple(self.touched),
            skipped=tuple(self.skipped),
            notes=tuple(self.notes),
            results=tuple(self.results),
            curves=dict(self.curves),
            plan=self.plan,
        )

    # ---- making

    def at(self, node: ir.Node | None, name: str | None = None) -> Builder:
        """What makes operators and constants in front of ``node``, or at the end of the graph.

        Their names begin with ``name``; without it, with the name of what ``node`` computes.
        """
        if name is None:
            name = node.outputs[0].name if node is not None else ""
        return Builder(self, node, name or "")

    def constant(self, array: np.ndarray, name: str, dtype: ir.DataType | None = None) -> ir.Value:
        """A new initializer; the array goes to scratch on disk when it is large."""
        tensor = self.model.store(array, dtype)
        value = ir.Value(
            name=self.fresh_name(name),
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        tensor.name = value.name
        self.model.graph.register_initializer(value)
        self.modified = True
        return value

    def insert(self, node: ir.Node, name: str, before: ir.Node | None) -> None:
        """Put a new ``node`` before another (at the end without); ``name`` is that of its first output."""
        for index, value in enumerate(node.outputs):
            value.name = self.fresh_name(name if index == 0 else f"{name}.{index}")
        node.name = f"node_{node.outputs[0].name}"
        if before is None:
            self.model.graph.append(node)
        else:
            self.model.graph.insert_before(before, node)
        if node.domain:
            self.model.graph.opset_imports.setdefault(node.domain, 1)
        self.modified = True

    def fresh_name(self, name: str) -> str:
        """``name``, with a number behind it when it is taken; the same in every run."""
        # Names are collected when one is first needed, since many passes make nothing.
        self._names = self._names or _value_names(self.model)
        candidate, number = name, 1
        while candidate in self._names:
            candidate, number = f"{name}.{number}", number + 1
        self._names.add(candidate)
        return candidate

    # ---- looking

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is the same in every run; remembered until something reads another value."""
        return self._constants(value)

    # ---- changing

    def replace(self, old: ir.Value, new: ir.Value, *, take_name: bool = False) -> None:
        """Let every use of ``old`` (also as a graph output, which keeps its name) read ``new``.

        A node that makes ``new`` from ``old`` goes on reading ``old``, so that a value can be wrapped. With
        ``take_name``, ``new`` was made to be ``old``: it takes over its name and its metadata. Type and shape
        go with the name where nothing infers them: at an output, and where an operator of another domain
        makes either value.
        """
        is_output = old.is_graph_output()
        if is_output or take_name:
            new = self._nameable(new)
            new.name, old.name = old.name, self.fresh_name(f"{old.name}.before")
            if is_output or any(node and node.domain for node in (old.producer(), new.producer())):
                new.type, new.shape = old.type, None if old.shape is None else old.shape.copy()
        if take_name:
            new.metadata_props.update(old.metadata_props)
        if is_output:
            outputs = self.model.graph.outputs
            outputs[:] = [new if output is old else output for output in outputs]
        # The uses change while they are gone through.
        for node, index in tuple(old.uses()):
            # Otherwise a node that wraps the old value would read its own result.
            if node is not new.producer():
                node.replace_input_with(index, new)
        self._rewired()

    def _nameable(self, value: ir.Value) -> ir.Value:
        """``value``, or a copy of one whose name belongs to the caller: an input, an output or a weight."""
        if value.is_graph_input() or value.is_graph_output() or value.const_value is not None:
            return self.at(None).op("Identity", value)
        return value

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Let one input of ``node`` read ``value``; inputs that have to be added before it stay empty."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        self._rewired()

    def _rewired(self) -> None:
        self.modified = True
        self._constants = Constants()

    def overwrite(self, value: ir.Value, array: np.ndarray) -> None:
        """Give an initializer other numbers; its name, its type and its readers stay."""
        dtype = value.dtype or ir.DataType.FLOAT
        tensor = self.model.store(array.astype(dtype.numpy()), dtype)
        tensor.name = value.name
        value.const_value, value.shape = tensor, ir.Shape(array.shape)
        self.modified = True

    def set_attribute(self, node: ir.Node, name: str, value: AttributeValue | None) -> None:
        """Give ``node`` an attribute, or take it away (None)."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
        self.modified = True

    def set_weight(self, subject: Linear | Embedding, weight: ir.Value) -> None:
        """Give a linear a new weight [in, out], experts one for all of them, or an embedding a new table.

        A linear that was a Gemm becomes MatMul + Add: one form for all that follows.
        """
        weight.metadata_props[NAME_KEY] = subject.name
        if isinstance(subject, Embedding):
            self.set_input(subject.node, 0, weight)
        elif isinstance(subject, Experts) and subject.lookup is not None:
            self.set_input(subject.lookup, 0, weight)
        elif subject.node.op_type == "MatMul":
            self.set_input(subject.node, 1, weight)
        else:
            self._as_matmul(subject, weight)

    def _as_matmul(self, linear: Linear, weight: ir.Value) -> None:
        x = linear.node.inputs[0]  # linear.input may be out of date: an earlier edit can have replaced it
        place = self.at(linear.node, linear.output.name)
        out = place.op("MatMul", x, weight, name="product")
        if linear.bias is not None:
            out = place.op("Add", out, linear.bias, name="sum")
        self.replace(linear.output, out)

    def apply(self, step: Callable[[ir.Model], ir.passes.PassResult]) -> bool:
        """Run a pass of a library over the whole model in place; whether it modified anything."""
        # Passes of libraries fold initializers that are inputs, too, which a caller may override.
        with overridable(self.model.graph):
            modified = bool(step(self.model.ir).modified)
        if modified:
            self._rewired()
            self._names = set()
        return modified

    def clean(self) -> None:
        """Remove what nothing uses any more, sort the nodes, infer shapes anew."""
        common.RemoveUnusedNodesPass()(self.model.ir)
        common.TopologicalSortPass()(self.model.ir)
        self.model.infer_shapes()
        self._constants = Constants()


def _value_names(model: Model) -> set[str | None]:
    """Names of all values, also of those inside subgraphs."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    names = {value.name for node in nodes for value in node.outputs}
    names.update(value.name for value in model.initializers())
    names.update(value.name for graph in model.ir.graphs() for value in graph.inputs)
    return names


def _name(subject: Subject) -> str:
    return subject if isinstance(subject, str) else subject.name


def _parameters(subject: Subject) -> int:
    return 0 if isinstance(subject, str) else subject.parameters
