"""A family of forms: where in a graph equivalent forms exist, and how each is written."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter

CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators."""

UNCHANGED = "unchanged"
"""Name of the form that a site has already."""

_SMALL = 64
"""Axes and shapes of at most this many elements are part of a site's signature."""


@dataclass(frozen=True, eq=False)
class Site:
    """A place where equivalent forms exist: the nodes that every form replaces, in the order of execution."""

    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Name of the value that the site computes."""
        return self.output.name or ""

    @property
    def output(self) -> ir.Value:
        """The value that the site computes."""
        return self.nodes[-1].outputs[0]

    def place(self, rw: Rewriter) -> Builder:
        """Where a form is written: in front of the last node, named after what that computes."""
        return rw.at(self.nodes[-1])

    @property
    def inputs(self) -> list[ir.Value]:
        """Values that the site reads and that differ from run to run."""
        inside = set(self.nodes)
        read = (value for node in self.nodes for value in node.inputs)
        found = [v for v in read if v is not None and v.producer() not in inside and not is_constant(v)]
        return list(dict.fromkeys(found))

    @property
    def outputs(self) -> list[ir.Value]:
        """Values of the site that something outside reads."""
        inside = set(self.nodes)
        return [
            value
            for node in self.nodes
            for value in node.outputs
            if value.is_graph_output() or any(user not in inside for user, _ in value.uses())
        ]

    def signature(self) -> str:
        """A digest of operators, attributes, wiring and sizes; sites that differ only in weights share it."""
        numbers: dict[ir.Value, int] = {}
        lines = []
        for node in self.nodes:
            read = [_described(value, numbers) for value in node.inputs]
            attributes = sorted(f"{key}={attr.value}" for key, attr in node.attributes.items())
            lines.append(f"{node.domain}.{node.op_type}{attributes}{read}")
            for value in node.outputs:
                numbers[value] = len(numbers)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]

    def extract(self, model: Model) -> Model:
        """A model of this site alone; its inputs and outputs have the names that they have in ``model``."""
        graph = ir.convenience.extract(model.graph, self.inputs, self.outputs)
        for value in graph.initializers.values():
            value.metadata_props.clear()
        return Model(ir.Model(graph, ir_version=model.ir.ir_version))


S = TypeVar("S", bound=Site)
Form = Callable[[Rewriter, S], None]
"""Rewrites a site into one form."""


class Family(abc.ABC, Generic[S]):
    """Equivalent forms of one kind of site.

    Attributes:
        name: what the lowering record calls it.
        default: the form that is taken when nothing is measured, and when others are not clearly faster.
        came_later: whether there are records from before it: one without any of its sites leaves them alone.
    """

    name: ClassVar[str]
    default: ClassVar[str]
    came_later: ClassVar[bool] = False

    @abc.abstractmethod
    def sites(self, model: Model) -> list[S]:
        """Sites of the main graph, in the order of execution; no two share a node."""

    @property
    @abc.abstractmethod
    def forms(self) -> Mapping[str, Form[S]]:
        """Form name → the rewrite that gives a site this form."""


def disjoint(sites: Iterable[S | None]) -> list[S]:
    """``sites`` that are there, without those that share a node with an earlier one."""
    taken: set[ir.Node] = set()
    kept = []
    for site in sites:
        if site is not None and taken.isdisjoint(site.nodes):
            taken.update(site.nodes)
            kept.append(site)
    return kept


def _described(value: ir.Value | None, numbers: dict[ir.Value, int]) -> str:
    if value is None:
        return "none"
    shape = ",".join(str(size) if isinstance(size, int) else "?" for size in value.shape or ())
    text = f"{value.dtype}[{shape}]"
    if not is_constant(value):
        return f"#{numbers.setdefault(value, len(numbers))}{text}"
    stored = value.const_value
    if stored is None or stored.size > _SMALL or stored.dtype != ir.DataType.INT64:
        return f"constant{text}"
    return f"{stored.numpy().tolist()}{text}"
