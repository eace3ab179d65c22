"""Sizes that engines are built for: the smallest, the most frequent and the largest shape of every input.

A model that reads its own past works in two phases: prefill, when the first tokens come at once and there is
no past, and steps of one token with all that came before. An engine is tuned at one shape of every profile,
so that each phase has its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphcompress.data.lengths import longest_sample, mask_lengths
from graphcompress.errors import UsageError, nearest
from graphcompress.files.parts import is_cross, is_past
from graphcompress.graph.model import Model
from graphcompress.targets.common.fix_sizes import complete_sizes, parse_shape, sizes_of, variable_sizes

Profile = Mapping[str, Sequence[Sequence[int]]]
"""Input name → its smallest, most frequent and largest shape; inputs of fixed shape are not in it."""

ALL, PREFILL, STEPS, BOTH = "all", "prefill", "steps", "prefill and steps"
"""What a profile is for: a model without past; the first tokens; one token with past; both of the last."""


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


def graphs_of(model: Model, opt: str, largest: str) -> list[Model]:
    """What gets engines of its own: every part of ``model``, or ``model`` itself.

    Raises:
        UsageError: ``opt`` or ``largest`` names a size that none of them has.
    """
    graphs = [part for _, part in model.separate()] if model.joined else [model]
    known = [name for graph in graphs for names in variable_sizes(graph) for name in names]
    for option, text in (("opt", opt), ("largest", largest)):
        wanted = parse_shape(text)
        for name in wanted if isinstance(wanted, dict) else ():
            if name not in known:
                raise UsageError(
                    f"{option}={text!r}: no input has a size {name!r}: {nearest(name, set(known))}"
                )
    return graphs


def profiles(model: Model, opt: str, largest: str, *, apart: bool = True) -> dict[str, Profile]:
    """What each profile is for → its shapes; empty where no input has a variable size.

    Of ``1x128`` the 1 is the batch and the 128 every length; past and new tokens together are as many. A
    length is at most the number of positions that ``model`` has. With keys and values of an encoder among its
    past, a model only takes steps. Without ``apart`` one profile covers prefill and steps: it is tuned for
    steps, and its largest shape has half of the tokens as past.

    Raises:
        UsageError: ``opt`` or ``largest`` leaves a size of the inputs without a number.
    """
    names = [value.name or "" for value in model.graph.inputs if is_past(value.name or "")]
    if not names:
        phases = [ALL]
    elif any(map(is_cross, names)) or not _new_lengths(model):
        phases = [STEPS]
    else:
        phases = [PREFILL, STEPS] if apart else [BOTH]
    found = {phase: _profile(model, opt, largest, phase) for phase in phases}
    return {phase: profile for phase, profile in found.items() if profile}


def fitting(profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Number of the first of ``profiles`` that takes inputs of these ``shapes``; None where none does."""
    return next((number for number, profile in enumerate(profiles) if _takes(profile, shapes)), None)


def _takes(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> bool:
    return all(
        len(shapes[name]) == len(smallest)
        and all(low <= size <= high for low, size, high in zip(smallest, shapes[name], largest, strict=True))
        for name, (smallest, _, largest) in profile.items()
    )


def _profile(model: Model, opt: str, largest: str, phase: str) -> Profile:
    most = _sizes(model, "largest", largest, phase)
    frequent = _sizes(model, "opt", opt, STEPS if phase == BOTH else phase)
    frequent = {name: min(size, most[name]) for name, size in frequent.items()}
    every = [_sizes(model, "opt", "1x1", PREFILL if phase == BOTH else phase), frequent, most]
    computed = _together(model)
    return {
        value.name or "": [[_number(dim, computed, sizes) for dim in value.shape] for sizes in every]
        for value in model.graph.inputs
        if value.shape is not None and not value.shape.is_static()
    }


def _sizes(model: Model, option: str, text: str, phase: str) -> dict[str, int]:
    """The number that every variable size of the inputs gets in ``phase``; what is computed comes later."""
    wanted = parse_shape(text, option)
    firsts, others = variable_sizes(model)
    past, new = ([], []) if phase == ALL else (_past_lengths(model), _new_lengths(model))
    if isinstance(wanted, dict):
        own = {name: size for name, size in wanted.items() if name in {*firsts, *others}}
        sizes = complete_sizes(own, [*firsts, *others], text, option)
    elif wanted[1] is None:
        sizes = sizes_of(model, text, option)
    else:
        length = min(wanted[1], longest_sample(model) or wanted[1])
        before = {PREFILL: 0, STEPS: max(1, length - 1), BOTH: length // 2}.get(phase, length)
        sizes = {
            **dict.fromkeys(firsts, wanted[0]),
            **dict.fromkeys(others, length),
            **dict.fromkeys(past, before),
            **dict.fromkeys(new, length - before),
        }
    if phase == PREFILL:
        sizes |= dict.fromkeys(past, 0)
    if phase == STEPS:
        sizes |= dict.fromkeys(new, 1)
    return sizes


def _past_lengths(model: Model) -> list[str]:
    """Names of the sizes that count the tokens of the past."""
    own = [
        value for value in model.graph.inputs if is_past(value.name or "") and not is_cross(value.name or "")
    ]
    return _lengths_of(model, own)


def _new_lengths(model: Model) -> list[str]:
    """Names of the sizes that count new tokens: no past, nothing of an encoder, no mask over past and new."""
    named = [(value, (value.name or "").lower()) for value in model.graph.inputs]
    own = [value for value, name in named if not (is_past(name) or is_cross(name) or "mask" in name)]
    past = _past_lengths(model)
    return [name for name in _lengths_of(model, own) if name not in past]


def _together(model: Model) -> dict[str, ir.SymbolicDim]:
    """Name of the length of a mask over past and new tokens → what it is computed from."""
    past, new = _past_lengths(model), _new_lengths(model)
    own = [
        value
        for value in model.graph.inputs
        if "mask" in (value.name or "") and not is_cross(value.name or "")
    ]
    total = ir.SymbolicDim(" + ".join([*past[:1], *(new[:1] or ["1"])]))
    alone = [name for name in _lengths_of(model, own) if past and name not in {*past, *new}]
    return {**dict.fromkeys(alone, total), **mask_lengths(model)}


def _lengths_of(model: Model, values: Sequence[ir.Value]) -> list[str]:
    """Names of the lengths in the shapes of ``values``, without those that are computed from others."""
    _, lengths = variable_sizes(model)
    dims = [dim for value in values for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
    found = [name for dim in dims if (name := str(dim.value)) in lengths and dim.free_symbols() == {name}]
    return list(dict.fromkeys(found))


def _number(
    dim: int | ir.SymbolicDim, computed: Mapping[str, ir.SymbolicDim], sizes: Mapping[str, int]
) -> int:
    """A size of a shape; one that is a sum of others, such as past + sequence, is computed from them."""
    if isinstance(dim, int):
        return dim
    size = computed.get(str(dim.value), dim).evaluate(sizes)
    return size if isinstance(size, int) else sizes[str(dim.value)]
