"""Sizes that engines are built for: the smallest, the most frequent and the largest shape of every input."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphcompress.data.lengths import longest_sample, mask_lengths, total_length
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.targets.common.fix_sizes import parse_shape, sizes_of, variable_sizes


def check_profile(target: str, opt: str, largest: str) -> None:
    """Refuse sizes of a profile that cannot be read, or that are tuned for more than is taken.

    Raises:
        UsageError: names the option.
    """
    read: dict[str, dict[str, int | None]] = {}
    for option, text in (("opt", opt), ("largest", largest)):
        try:
            sizes = parse_shape(text, option)
        except UsageError as error:
            raise UsageError(f"{target}: {error}") from error
        named = sizes if isinstance(sizes, dict) else {"batch": sizes[0], "its length": sizes[1]}
        read[option] = dict(named)
    for name, size in read["opt"].items():
        limit = read["largest"].get(name)
        if size is not None and limit is not None and size > limit:
            raise UsageError(
                f"{target}{{opt={opt} largest={largest}}}: engines cannot be tuned for more than they take; "
                "expected opt up to largest"
            )


def profile_shapes(model: Model, opt: str, largest: str) -> dict[str, list[list[int]]]:
    """Input name → its smallest (all variable sizes 1), most frequent and largest shape; not fixed ones.

    Of ``1x128`` the 1 is the batch and the 128 every length; past and new tokens together are as many as both
    are. A length is at most the number of positions that ``model`` has.

    Raises:
        UsageError: ``opt`` or ``largest`` names a size that the model does not have, or leaves one out.
    """
    every = [_sizes(model, "opt", "1x1"), _sizes(model, "opt", opt), _sizes(model, "largest", largest)]
    return {
        value.name or "": [
            [dim if isinstance(dim, int) else sizes[str(dim.value)] for dim in value.shape] for sizes in every
        ]
        for value in model.graph.inputs
        if value.shape is not None and not value.shape.is_static()
    }


def _sizes(model: Model, option: str, text: str) -> dict[str, int]:
    """The number that every variable size of the inputs gets."""
    wanted = parse_shape(text)
    if isinstance(wanted, dict) or wanted[1] is None:
        return sizes_of(model, text, option)
    batch, length = wanted[0], wanted[1]
    firsts, others = variable_sizes(model)
    total, most = total_length(model), longest_sample(model)
    if most is not None:
        # Past and new tokens share the positions, and each of the two gets this length.
        length = min(length, most if total is None else max(1, most // 2))
    known = {**dict.fromkeys(others, length), **dict.fromkeys(firsts, batch)}
    joined = mask_lengths(model)
    return {name: _evaluated(joined.get(name, ir.SymbolicDim(name)), known, length) for name in known}


def _evaluated(dim: ir.SymbolicDim, known: Mapping[str, int], length: int) -> int:
    """A size that is a sum of others, such as past + sequence; ``length`` where it cannot be computed."""
    size = dim.evaluate({symbol: known.get(symbol, length) for symbol in dim.free_symbols()})
    return int(size) if isinstance(size, int) else length
