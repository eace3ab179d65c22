"""What is in a graph, and what each pass could do with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.cost import counted_on, macs, node_costs
from graphcompress.analysis.experts import all_experts
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.analysis.parameters import Parameters, all_parameters
from graphcompress.coupling.couplings import FFN, Group, couplings
from graphcompress.coupling.layers import layers
from graphcompress.graph.model import Model
from graphcompress.pipeline.account import Account
from graphcompress.pipeline.pipeline import first_passes
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context, Progress, no_progress
from graphcompress.plugin.contract import Lossy
from graphcompress.plugin.record import Skipped, Touched
from graphcompress.plugin.registry import PASSES


@dataclass(frozen=True)
class Weight:
    """A linear [rows = in, columns = out], experts [in, experts · out] or an embedding [rows, width].

    MACs are of one sample of 128 tokens.
    """

    kind: str
    name: str
    rows: int
    columns: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class OtherParameters:
    """Stored tensors that are no weight of a linear, of experts or of an embedding."""

    reason: str
    tensors: int
    parameters: int
    example: str


@dataclass(frozen=True)
class AttentionView:
    """One attention: its Softmax (or Attention operator), heads, and the linears around it."""

    node: str
    num_heads: int
    kv_heads: int
    head_dim: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    macs: int


@dataclass(frozen=True)
class LayerView:
    """One transformer block: its linears, heads and FFN nodes; MACs of its linears and attentions."""

    name: str
    linears: int
    heads: int
    ffn_nodes: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class GroupView:
    """Dimensions that can be cut together: how many units, and how many stored axes move with each."""

    name: str
    kind: str
    units: int
    axes: int


@dataclass(frozen=True)
class Opportunity:
    """What one pass with default options did to a copy of the model, nothing checked or kept."""

    text: str
    touched: tuple[Touched, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    parameters: int
    weight_bytes: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """What is in a graph.

    Attributes:
        opset: of the standard operators.
        inputs, outputs: name, type and shape as text.
        operators: operator (with its domain) → number of nodes.
        parameters, weight_bytes, macs: totals.
        counted_on: what one run is whose MACs are counted, such as one sample of 128 tokens.
        weights: linears, experts and embeddings, in execution order.
        others: all other float parameters.
        attentions, layers, groups: what the analyses found.
        opportunities: one per pass that was tried.
    """

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: Mapping[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    counted_on: str
    weights: tuple[Weight, ...]
    others: tuple[OtherParameters, ...]
    attentions: tuple[AttentionView, ...]
    layers: tuple[LayerView, ...]
    groups: tuple[GroupView, ...]
    opportunities: tuple[Opportunity, ...]


def inspect(
    model: Model,
    passes: Iterable[Pass] | None = None,
    *,
    ctx: Context | None = None,
    progress: Progress = no_progress,
) -> Inspection:
    """Look at ``model`` without changing it, and try each of ``passes`` (default: all installed) on a copy.

    Every pass is tried alone, after those that go first; ``ctx`` gives samples, capabilities and seed.
    """
    groups = couplings(model)
    costs = {cost.node: cost.macs for cost in node_costs(model)}
    tried = [kind() for kind in PASSES.usable()] if passes is None else list(passes)
    opportunities = []
    for number, step in enumerate(tried):
        progress("try passes", number, len(tried))
        opportunities.append(_try(model, step, ctx or Context()))
    progress("try passes", len(tried), len(tried))
    return Inspection(
        opset=model.opset,
        inputs=tuple(f"{value.name}: {value.dtype} {value.shape}" for value in model.graph.inputs),
        outputs=tuple(f"{value.name}: {value.dtype} {value.shape}" for value in model.graph.outputs),
        operators=_operators(model),
        parameters=model.parameters,
        weight_bytes=model.weight_bytes,
        macs=macs(model),
        counted_on=counted_on(model),
        weights=_weights(model, costs),
        others=_others(model),
        attentions=_attentions(model, costs),
        layers=_layers(model, groups, costs),
        groups=tuple(GroupView(group.name, group.kind, group.size, len(group.slices)) for group in groups),
        opportunities=tuple(opportunities),
    )


def _operators(model: Model) -> dict[str, int]:
    names = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return dict(names.most_common())


def _weights(model: Model, costs: Mapping[ir.Node, int]) -> tuple[Weight, ...]:
    tables = [
        Weight("embedding", table.name, table.rows, table.width, table.parameters, 0)
        for table in embeddings(model)
    ]
    experts = [
        Weight(
            f"{each.experts} experts",
            each.name,
            each.in_features,
            each.out_features,
            each.parameters,
            costs.get(each.node, 0),
        )
        for each in all_experts(model)
    ]
    maps = [
        Weight(
            "linear",
            linear.name,
            linear.in_features,
            linear.out_features,
            linear.parameters,
            costs.get(linear.node, 0),
        )
        for linear in linears(model)
    ]
    return tuple(tables + maps + experts)


def _others(model: Model) -> tuple[OtherParameters, ...]:
    by_reason: dict[str, list[Parameters]] = {}
    for each in all_parameters(model):
        if each.reason:
            by_reason.setdefault(each.reason, []).append(each)
    return tuple(
        OtherParameters(reason, len(found), sum(each.count for each in found), found[0].name)
        for reason, found in by_reason.items()
    )


def _attentions(model: Model, costs: Mapping[ir.Node, int]) -> tuple[AttentionView, ...]:
    return tuple(
        AttentionView(
            node=found.node.name or found.node.op_type,
            num_heads=found.num_heads,
            kv_heads=found.kv_heads,
            head_dim=found.head_dim,
            producers=tuple(linear.name for linear in found.producers),
            consumers=tuple(linear.name for linear in found.consumers),
            macs=_attention_macs(found, costs),
        )
        for found in attentions(model)
    )


def _attention_macs(found: Attention, costs: Mapping[ir.Node, int]) -> int:
    return sum(costs.get(node, 0) for node in found.products)


def _layers(model: Model, groups: list[Group], costs: Mapping[ir.Node, int]) -> tuple[LayerView, ...]:
    return tuple(
        LayerView(
            name=layer.name,
            linears=len(layer.linears),
            heads=sum(found.num_heads for found in layer.attentions),
            ffn_nodes=sum(group.size for group in layer.groups if group.kind == FFN),
            parameters=sum(linear.parameters for linear in layer.linears),
            macs=sum(costs.get(linear.node, 0) for linear in layer.linears)
            + sum(_attention_macs(found, costs) for found in layer.attentions),
        )
        for layer in layers(model, groups)
    )


def _try(model: Model, step: Pass, ctx: Context) -> Opportunity:
    copy = model.clone()
    # A trial is a question, and training may take hours.
    untrained = dataclasses.replace(ctx, training=None)
    for first in () if step.goes_first else first_passes([step]):
        first.run(copy, dataclasses.replace(untrained, progress=no_progress))
    account = Account(copy)
    done = step.run(copy, untrained)
    rest = account.unnamed(copy, done) if isinstance(step.contract, Lossy) else ()
    return Opportunity(
        text=str(step),
        touched=done.touched,
        skipped=(*done.skipped, *rest),
        notes=done.notes,
        parameters=copy.parameters,
        weight_bytes=copy.weight_bytes,
        macs=macs(copy),
    )
