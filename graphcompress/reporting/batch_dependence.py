"""Why an answer of a quantised model depends on what else is in its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphcompress.graph.model import Model
    from graphcompress.measure.invariance import Invariance
    from graphcompress.measure.verify import Difference

FROM_THE_BATCH = "scales of activations are computed from the whole batch; int8{scheme=static} fixes them"


def why_it_varies(
    model: Model | None, artifact: Invariance, given: Invariance, difference: Difference
) -> str:
    """One sentence for the report; empty where nothing varies, or the model that came in varies too.

    With fixed scales nothing in the graph depends on batch mates. What is left is the order in which floats
    are added: a product over more positions, of which all new ones count nothing, differs in its last bit,
    and where a value lies between two int8 steps it is rounded to the other one.
    """
    if model is None or not artifact.changed or given.changed:
        return ""
    kinds = {node.op_type for node in model.graph}
    if "DynamicQuantizeLinear" in kinds:
        return FROM_THE_BATCH
    if "QuantizeLinear" not in kinds:
        return ""
    less = artifact.max_relative_error <= difference.max_relative_error
    figure = (
        f"{'less' if less else 'more'} than the {difference.max_relative_error:.1%} of quantisation itself"
    )
    return (
        "all scales are fixed: in a longer batch floats are added in another order, the last bit turns the "
        f"rounding of a value between two int8 steps, and the layers behind it make that visible ({figure})"
    )
