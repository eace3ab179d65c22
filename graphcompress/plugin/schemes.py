"""Schemes of quantisation: passes ask for them, targets say which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Granularity:
    """What has a scale of its own: a ``tensor``, a ``channel``, or a ``block`` of ``size`` numbers."""

    name: str
    size: int = 0

    def __str__(self) -> str:
        return f"per {self.name}" + (f" of {self.size}" if self.size else "")


PER_TENSOR, PER_CHANNEL, PER_TOKEN = Granularity("tensor"), Granularity("channel"), Granularity("token")
PER_HEAD = Granularity("head")


def per_block(size: int) -> Granularity:
    """One scale for every ``size`` neighbours of a channel."""
    return Granularity("block", size)


@dataclass(frozen=True)
class Numbers:
    """The low-bit numbers of one site.

    Attributes:
        bits: that a number may use. An int8 weight may use 7 where the products of two neighbours are added
            in 16 bits (x86 without VNNI): then 8 bits must hold the sum of the two.
        signed: they have a sign.
        symmetric: zero stands for zero; else there is a zero point.
        floating: floats, of which 8 bits are FP8, and not integers.
        per: what has a scale of its own.
        dynamic: scales are computed at run time, from the values themselves; else they are stored.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    floating: bool = False
    per: Granularity = PER_TENSOR
    dynamic: bool = False

    @property
    def type(self) -> str:
        """The type that holds one: ``uint8``, ``int4``, ``float8``."""
        width = next((width for width in (2, 4, 8, 16) if width >= self.bits), self.bits)
        return f"{'float' if self.floating else 'int' if self.signed else 'uint'}{width}"

    @property
    def when(self) -> str:
        """When scales are found: ``static`` (before), ``dynamic`` or ``per token`` (at run time)."""
        if not self.dynamic:
            return "static"
        return str(PER_TOKEN) if self.per == PER_TOKEN else "dynamic"

    def at(self, site: str) -> str:
        """These numbers of ``site`` as text, such as ``int8 weights per channel``."""
        bits = "" if self.type.endswith(str(self.bits)) else f" of {self.bits} bits"
        return f"{self.type} {site}{bits} {self.per}"

    def common(self, other: Numbers) -> Numbers | None:
        """What can be both: with fewer bits the same numbers fit; nothing else bends."""
        fewest = min(self.bits, other.bits)
        mine, theirs = replace(self, bits=fewest), replace(other, bits=fewest)
        return mine if mine == theirs and self.type == other.type else None


@dataclass(frozen=True)
class Scheme:
    """How a product is computed: the numbers of every site, None where a site stays in float.

    Attributes:
        weights: of linears.
        activations: that linears read.
        outputs: of linears.
        cache: keys and values that a decoder keeps.
    """

    weights: Numbers | None = None
    activations: Numbers | None = None
    outputs: Numbers | None = None
    cache: Numbers | None = None

    def common(self, other: Scheme) -> Scheme | None:
        """The scheme with the most bits that suits whoever runs either, or None."""
        sites: dict[str, Numbers | None] = {}
        for site, mine in vars(self).items():
            theirs = getattr(other, site)
            sites[site] = mine.common(theirs) if mine is not None and theirs is not None else None
            # None on both sides means that both leave the site in float, which suits both.
            if sites[site] is None and mine is not theirs:
                return None
        return Scheme(**sites)

    def __str__(self) -> str:
        sites = {site: numbers for site, numbers in vars(self).items() if numbers is not None}
        return ", ".join(numbers.at(site) for site, numbers in sites.items()) or "floats"

    def includes(self, other: Scheme) -> bool:
        """Whether what runs this scheme runs ``other``, too."""
        return self.common(other) == other


INT8, UINT8 = Numbers(), Numbers(signed=False, symmetric=False)
"""Activations of 8 bits, with one scale for the whole tensor."""

TOKENS = Numbers(signed=False, per=PER_TOKEN, dynamic=True)
"""Activations of 8 bits around 128, with a scale for each token."""

INT8_CACHE = Scheme(cache=Numbers(per=PER_HEAD))
"""Keys and values in 8 bits, with a scale for each head."""


def integer_products(
    *activations: Numbers, dynamic: bool = False, weight_bits: int = 8
) -> tuple[Scheme, ...]:
    """Schemes of int8 weights per channel with each of ``activations``, the better one first.

    Args:
        activations: numbers that the activations may have.
        dynamic: their scales may also be computed at run time, for the whole tensor or for each token.
        weight_bits: that the weights may use.
    """
    weights = Numbers(weight_bits, per=PER_CHANNEL)
    # Stored scales first: they cost nothing at run time, and an answer depends on its own input alone.
    times = (False, True) if dynamic else (False,)
    found = [Scheme(weights, replace(kind, dynamic=time)) for time in times for kind in activations]
    return (*found, Scheme(weights, TOKENS)) if dynamic and UINT8 in activations else tuple(found)


def common_schemes(one: Sequence[Scheme], other: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """What both sets of schemes include, in the order of the first."""
    pairs = (mine.common(theirs) for mine in one for theirs in other)
    return tuple(dict.fromkeys(scheme for scheme in pairs if scheme is not None))


def described(schemes: Sequence[Scheme]) -> str:
    """Schemes as text; those that differ in their activations alone are said together."""
    together: dict[Scheme, dict[str, list[str]]] = {}
    for scheme in schemes:
        kinds = together.setdefault(replace(scheme, activations=None), {})
        if scheme.activations is not None:
            kinds.setdefault(scheme.activations.type, []).append(scheme.activations.when)
    return "; ".join(f"{rest}{_with(kinds)}" for rest, kinds in together.items())


def _with(kinds: Mapping[str, Sequence[str]]) -> str:
    parts = [f"{kind} ({' or '.join(times)})" for kind, times in kinds.items()]
    return f" with activations in {' or '.join(parts)}" if parts else ""
