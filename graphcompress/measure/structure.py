"""Is the result a valid model with the interface of the one that came in?"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from graphcompress.errors import ContractError
from graphcompress.files.parts import handed_on
from graphcompress.files.reading.wholeness import SMALL_BYTES, with_shape
from graphcompress.files.stored import StoredTensor
from graphcompress.graph.model import Model


def check_structure(model: Model, before: Mapping[str, tuple[str, ...]]) -> None:
    """The ONNX checker, and the interface of ``before`` (see :func:`interface`) unchanged.

    Raises:
        ContractError: what the checker says, or which input or output changed.
    """
    after = interface(model)
    for kind, names in before.items():
        if after[kind] != names:
            raise ContractError(f"the {kind} changed from {list(names)} to {list(after[kind])}")
    proto = ir.to_proto(_without_weights(model))
    for values in (proto.graph.input, proto.graph.output):
        shaped = [with_shape(value) for value in values]
        del values[:]
        values.extend(shaped)
    try:
        onnx.checker.check_model(proto, full_check=False)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ContractError(f"the ONNX checker refuses the result: {first}") from error


def interface(model: Model) -> dict[str, tuple[str, ...]]:
    """Inputs and outputs with their types and shapes, as text."""
    passed_on = {name for link in handed_on(model.parts) for name in link}

    def described(value: ir.Value) -> str:
        said = model.declared.said(value)
        # Parts of one model agree among themselves how many heads a cache has, and how it is stored.
        return f"{len(said or ())} axes" if value.name in passed_on else f"{value.dtype} {said}"

    return {
        kind: tuple(f"{value.name}: {described(value)}" for value in values)
        for kind, values in (("inputs", model.graph.inputs), ("outputs", model.graph.outputs))
    }


def _without_weights(model: Model) -> ir.Model:
    """A copy whose large initializers became inputs, so that the checker needs no weights in memory."""
    copy = model.ir.clone()
    for name, value in list(copy.graph.initializers.items()):
        if value.const_value is None or value.is_graph_input():
            continue
        if value.const_value.nbytes > SMALL_BYTES or isinstance(value.const_value, StoredTensor):
            copy.graph.initializers.pop(name)
            value.const_value = None
            copy.graph.inputs.append(value)
    return copy
