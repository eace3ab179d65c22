"""Operators and plainer ones side by side in a student, and the plainer ones alone in what is deployed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from graphcompress.analysis.activations import GELU, TANH_GELU, activations
from graphcompress.graph.match import array_of
from graphcompress.plugin.instrument import Attached, Step
from graphcompress.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from graphcompress.instruments.plain_operators.plain_operators import PlainOperators

INSIDE = "plain_operators"
"""Name of the module in the student that holds what is mixed."""
KEPT = 0.99
"""Running means keep this share of their former value at every step."""


class Mixed(nn.Module):
    """A mean of an operator and a plainer one.

    Attributes:
        share: what the plainer one counts for, from 0 to 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.zeros(()))

    def mix(self, whole: Callable[[], Tensor], plain: Callable[[], Tensor]) -> Tensor:
        """Only what counts is computed."""
        share = self.get_buffer("share")
        if share == 0:
            return whole()
        return plain() if share == 1 else torch.lerp(whole(), plain(), share)


class MixedActivation(Mixed):
    """GELU and ReLU."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return self.mix(lambda: functional.gelu(x, **self.options), lambda: functional.relu(x))


class MixedNorm(Mixed):
    """LayerNormalization over the last axis, and an affine map by one running mean and variance.

    Attributes:
        sums: count, sum and sum of squares of what came in since they were set to zero.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("variance", torch.ones(()))
        self.register_buffer("seen", torch.tensor(False))
        # Counted anew in every step, so that no checkpoint needs them.
        self.register_buffer("sums", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """[..., features] by gain and shift [features]; ``mask`` [batch, tokens] is 0 at padding."""
        with torch.no_grad():
            values = x.detach().float()
            # How much padding there is depends on what else is in the batch, and is other in every process.
            if mask is not None and values.shape[:2] == mask.shape:
                values = values[mask != 0]
            self.get_buffer("sums").add_(
                torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])
            )

        def plain() -> Tensor:
            scaled = (x - self.get_buffer("mean")) * self.factor() * gain
            return scaled if shift is None else scaled + shift

        def whole() -> Tensor:
            return functional.layer_norm(x, x.shape[-1:], gain, shift, self.epsilon)

        return self.mix(whole, plain) if self.get_buffer("seen") else whole()

    def factor(self) -> Tensor:
        """What the affine map multiplies by, before the gain."""
        return torch.rsqrt(self.get_buffer("variance") + self.epsilon)

    @torch.no_grad()
    def move(self) -> None:
        """Take what came in since the last step into the running means; the first step sets them."""
        count, total, squares = self.get_buffer("sums")
        kept = KEPT * self.get_buffer("seen").float()
        mean = total / count.clamp(min=1)
        self.get_buffer("mean").lerp_(mean, 1 - kept)
        self.get_buffer("variance").lerp_(squares / count.clamp(min=1) - mean.square(), 1 - kept)
        self.get_buffer("seen").fill_(True)


class Interpolated(Attached):
    """Plain operators at work on one student."""

    def __init__(self, given: PlainOperators, student: fx.GraphModule) -> None:
        self.given = given
        self.student = student
        self.found: dict[str, Mixed] = {}
        model = student.meta["model"]
        curves = {each.nodes[-1].outputs[0].name for each in activations(model) if each.function in _CURVES}
        layers = {node.outputs[0].name for node in model.graph if _is_plain_norm(node)}
        masks = [argument for argument, name in student.meta["inputs"].items() if "mask" in name]
        mask = next((n for n in student.graph.find_nodes(op="placeholder") if n.target in masks), None)
        inside = nn.Module()
        student.add_submodule(INSIDE, inside)
        for node in list(student.graph.nodes):
            value = node.meta.get("value")
            if given.norms and node.target is functional.layer_norm and value in layers:
                x, _, gain, shift, epsilon = node.args
                self._put(student, inside, node, MixedNorm(float(epsilon)), (x, gain, shift, mask))
            elif given.activations and node.target is functional.gelu and value in curves:
                self._put(student, inside, node, MixedActivation(node.kwargs), node.args[:1])
        student.recompile()

    def _put(
        self, student: fx.GraphModule, inside: nn.Module, node: fx.Node, mixed: Mixed, args: tuple[Any, ...]
    ) -> None:
        name = f"m{len(self.found)}"
        inside.add_module(name, mixed)
        self.found[str(node.meta["value"])] = mixed
        with student.graph.inserting_after(node):
            made = student.graph.call_module(f"{INSIDE}.{name}", args)
        # Taps and other instruments find a node by the value that it computes.
        made.meta["value"] = node.meta["value"]
        node.replace_all_uses_with(made)
        student.graph.erase_node(node)

    @property
    def norms(self) -> list[MixedNorm]:
        """The normalisations that become plain."""
        return [mixed for mixed in self.found.values() if isinstance(mixed, MixedNorm)]

    def before_step(self, step: Step) -> None:
        """The plain ones count for more."""
        # The last step is one in which they are alone: what is deployed is evaluated.
        last = self.given.until * (step.steps - 1)
        share = 1.0 if step.number >= last else step.number / last
        for mixed in self.found.values():
            mixed.get_buffer("share").fill_(share)
        for norm in self.norms:
            norm.get_buffer("sums").zero_()

    def summed(self) -> list[Tensor]:
        """What came into the normalisations."""
        return [norm.get_buffer("sums") for norm in self.norms]

    def after_step(self, step: Step) -> None:
        """Running means move until the affine map is alone: the weights learn with it from then on."""
        for norm in self.norms:
            if norm.get_buffer("share") < 1 or not norm.get_buffer("seen"):
                norm.move()

    def may_end(self, step: Step) -> bool:
        """Not while an operator counts that is not deployed."""
        return all(bool(mixed.get_buffer("share") == 1) for mixed in self.found.values())

    def finish(self, rw: Rewriter) -> None:
        """The plain operators take the places of the others."""
        values = {value.name: value for node in rw.model.graph for value in node.outputs}
        curves = {each.nodes[-1].outputs[0]: each for each in activations(rw.model)}
        for name, mixed in self.found.items():
            value = values[name]
            node = value.producer()
            b = rw.at(node, name)
            if isinstance(mixed, MixedNorm) and node is not None:
                made = _affine(b.op, node, mixed)
            else:
                made = b.op("Relu", curves[value].x)
            rw.replace(value, made, take_name=True)
        count = len(self.norms)
        rw.note(f"{count} normalisations are affine maps, {len(self.found) - count} GELU are ReLU")


_CURVES = (GELU, TANH_GELU)


def _is_plain_norm(node: ir.Node) -> bool:
    """Whether a node normalises the last axis alone, and gives the result alone."""
    if node.op_type != "LayerNormalization" or node.domain or len(node.outputs) > 1:
        return False
    rank = None if node.outputs[0].shape is None else len(node.outputs[0].shape)
    stored = all(array_of(value) is not None for value in node.inputs[1:] if value is not None)
    return stored and node.attributes.get_int("axis", -1) in (-1, (rank or 0) - 1)


def _affine(op: Callable[..., ir.Value], node: ir.Node, norm: MixedNorm) -> ir.Value:
    """The affine map as two operators, with what does not change multiplied out."""
    gain, shift = (array_of(value) for value in (*node.inputs[1:3], None)[:2])
    mean, factor = float(norm.get_buffer("mean")), float(norm.factor())
    slope = np.asarray(gain, np.float64) * factor
    offset = (0.0 if shift is None else np.asarray(shift, np.float64)) - slope * mean
    return op("Add", op("Mul", node.inputs[0], slope, name="scaled"), offset, name="moved")
