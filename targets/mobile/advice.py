"""Why a provider of a device splits a graph, and which option avoids it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from graphcompress.targets.mobile.partitions import Partitions

_NNAPI, _COREML, _XNNPACK = "NNAPI", "CoreML", "XNNPACK"


@dataclass(frozen=True)
class _Cause:
    """Operators of one origin that stay on the CPU, the providers to which that matters, what to do."""

    operators: frozenset[str]
    providers: tuple[str, ...]
    text: str


_OWN = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "DynamicQuantizeLinear"})
_WITHOUT_INT8 = (
    "leave the pass int8 out (kron and prune make a float model smaller), or stay with the CPU provider"
)
_CAUSES = (
    _Cause(
        _OWN | {"QuantizeLinear", "DequantizeLinear"},
        (_XNNPACK, _NNAPI, _COREML),
        f"these providers multiply by stored float weights; {_WITHOUT_INT8}",
    ),
    _Cause(
        frozenset({"Gelu", "FastGelu", "Erf"}),
        (_NNAPI,),
        "with mobile{provider=nnapi} it is written in operators that NNAPI has, with the same numbers",
    ),
    _Cause(
        frozenset({"Gelu", "FastGelu"}),
        (_COREML,),
        "ONNX Runtime's own operator; with mobile{provider=coreml} it is written in standard ones, which an "
        "ML program has",
    ),
    _Cause(
        frozenset({"LayerNormalization"}),
        (_NNAPI,),
        "with mobile{provider=nnapi} it is written as means and a root",
    ),
    _Cause(
        frozenset({"IsNaN"}),
        (_NNAPI, _COREML),
        "guards against NaN in float inputs; simplify{finite_inputs=true} leaves them out, where inputs "
        "have none",
    ),
    _Cause(
        frozenset({"Where"}),
        (_NNAPI, _COREML),
        "one of its branches is not provably finite, and arithmetic would make NaN of an infinity",
    ),
)


def advice(parts: Sequence[Partitions], provider: str = "") -> list[str]:
    """A sentence per cause of a split: the operators, the providers that lack them, and the option.

    ``provider`` (of the target mobile) asks for what concerns this one alone.
    """
    wanted = [part for part in parts if part.provider.lower().startswith(provider)]
    lines = []
    for cause in _CAUSES:
        lacking = {
            part.provider: _plain(part.unsupported) & cause.operators
            for part in wanted
            if part.provider.startswith(cause.providers)
        }
        names = sorted(set().union(*lacking.values()))
        if names:
            where = ", ".join(name for name, operators in lacking.items() if operators)
            lines.append(f"{where}: {', '.join(names)}: {cause.text}")
    lines += [
        f"{part.provider}: {part.restored} products of int8 weights stay on the CPU, though its list of "
        f"operators has them: it multiplies by stored float weights; {_WITHOUT_INT8}"
        for part in wanted
        if part.restored
    ]
    sizes = ", ".join(part.provider for part in wanted if part.dynamic)
    if sizes:
        lines.append(f"{sizes}: nodes of variable size: fix the sizes, such as mobile{{shape=1x128}}")
    return lines


def _plain(names: Collection[str]) -> frozenset[str]:
    """Operators without the domain in front of them."""
    return frozenset(name.rpartition(":")[2] for name in names)
