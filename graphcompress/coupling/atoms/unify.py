"""Unification of dimensions: an axis is a product or a concatenation of atoms; operators say which are equal.

An atom is an integer handle. It is a *leaf*, or it has been found to be a row-major product of atoms
(768 = 12 · 64) or a concatenation of atoms (2304 = 768 + 768 + 768). Saying that two axes are equal refines
both until the parts match, and unites the parts. What cannot be matched is blocked.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphcompress.coupling.atoms.store import AtomStore
from graphcompress.graph.sizes import ONE, Size

Factors = list[int]
"""A product of atoms, row-major; empty for size 1."""

Pairs = list[tuple[Factors, Factors]]
"""Products that are still to be matched."""


class Atoms(AtomStore):
    """Atoms that can be said to be equal: both are refined until their parts match."""

    def product(self, parts: Sequence[int]) -> int:
        """A fresh atom that is the row-major product of ``parts``."""
        size = ONE
        for part in parts:
            size = size * self.size(part)
        atom = self.new(size)
        if len(parts) == 1:
            self.unify(atom, parts[0])
        elif parts:
            self._refine(self.root(atom), "product", parts)
        return atom

    def concat(self, parts: Sequence[int]) -> int:
        """A fresh atom that is the concatenation of ``parts``, all of fixed size."""
        atom = self.new(Size(sum(self.size(part).number for part in parts)))
        self._refine(self.root(atom), "concat", parts)
        return atom

    def unify(self, left: int | None, right: int | None) -> None:
        """Say that two axes are the same, index by index (None: an axis of size 1, which says nothing)."""
        if left is None or right is None or self.root(left) == self.root(right):
            return
        if self.size(left) != self.size(right):
            self.block((left, right), "sizes that do not agree meet")
            return
        self.match([left], [right])

    def match(self, left: Sequence[int], right: Sequence[int]) -> None:
        """Say that two row-major products with the same total are the same, as a Reshape does."""
        # A stack in place of recursion, so that deep nesting never meets Python's limit.
        pending = [(list(left), list(right))]
        while pending:
            self._match(*pending.pop(), pending)

    # ---- how

    def _match(self, left: Factors, right: Factors, pending: Pairs) -> None:
        # Both ends are tried: a size that is not known stops the matching at its own end alone.
        for end in (-1, 0):
            while self._match_end(left, right, end, pending):
                pass
        left, right = self._flat(left), self._flat(right)
        if not left and not right:
            return
        # What is left matches at neither end: a size that is not known may still be the product of the
        # other side.
        if not self._absorb(left, right) and not self._absorb(right, left):
            self.block([*left, *right], "a Reshape mixes it with other dimensions")

    def _match_end(self, left: Factors, right: Factors, end: int, pending: Pairs) -> bool:
        """Match one factor at one end of both products and take it off; False when that is not possible."""
        left[:], right[:] = self._flat(left), self._flat(right)
        if not left or not right:
            return False
        one, other = left[end], right[end]
        # At the end of a row-major product equal sizes mean the same axis, since both run over the same
        # elements in the same order.
        if self.size(one) == self.size(other):
            self._unite(left.pop(end), right.pop(end), pending)
            return True
        if self._divide(left, other, end) or self._divide(right, one, end):
            return True
        return self._distribute(left, right, end, pending) or self._distribute(right, left, end, pending)

    def _flat(self, factors: Factors) -> Factors:
        """Leaves and concatenations of a product, from left to right, without size 1."""
        found, pending = [], list(reversed(factors))
        while pending:
            root = self.root(pending.pop())
            known = self._classes[root]
            if known.joined == "product":
                pending.extend(reversed(known.parts))
            elif known.size != ONE:
                found.append(root)
        return found

    def _divide(self, factors: Factors, by: int, end: int) -> bool:
        """Split the leaf at ``end`` so that a part of the size of ``by`` stands at the end."""
        atom = factors[end]
        quotient = self.size(atom).over(self.size(by))
        if self.known(atom).parts or quotient is None:
            return False
        # In a row-major product the right factor varies fastest, so the part that is to match stands at the
        # end that is matched.
        parts = [self.new(self.size(by)), self.new(quotient)]
        self._refine(atom, "product", parts if end == 0 else parts[::-1])
        return True

    def _distribute(self, whole: Factors, factors: Factors, end: int, pending: Pairs) -> bool:
        """Match a concatenation at the right end with a product: (a₁ + a₂) · b is a₁·b + a₂·b."""
        if end == 0 or self.known(whole[-1]).joined != "concat":
            return False
        taken = self._take(factors, self.size(whole[-1]))
        if taken is None:
            return False
        segments = self._segments([whole[-1]])
        pairs = self._spread(taken, [self._total(segment) for segment in segments])
        if pairs is None:
            return False
        whole.pop()
        del factors[len(factors) - len(taken) :]
        pending.extend(zip(segments, pairs, strict=True))
        return True

    def _take(self, factors: Factors, size: Size) -> Factors | None:
        """The factors at the right end whose product is ``size``; a leaf is split when that is needed."""
        count, total = 0, ONE
        while count < len(factors):
            count += 1
            atom = factors[-count]
            rest = size.over(total)
            grown = total * self.size(atom)
            if grown == size:
                return factors[len(factors) - count :]
            # The next factor is too large to fit whole, so that the size is met only by a part of it.
            if size.over(grown) is None:
                if rest is None or self.known(atom).parts or (quotient := self.size(atom).over(rest)) is None:
                    return None
                parts = [self.new(quotient), self.new(rest)]
                self._refine(atom, "product", parts)
                factors[-count : len(factors) - count + 1] = parts
                return factors[len(factors) - count :]
            total = grown
        return None

    def _spread(self, factors: Factors, sizes: Sequence[Size]) -> list[Factors] | None:
        """The product as consecutive segments of ``sizes``: its first factor becomes a concatenation."""
        head, rest = factors[0], factors[1:]
        wanted = [size.over(self._total(rest)) for size in sizes]
        if any(size is None or not size.fixed for size in wanted):
            return None
        heads = self._cut(head, [size.number for size in wanted if size is not None])
        return None if heads is None else [[*segment, *rest] for segment in heads]

    def _cut(self, atom: int, sizes: Sequence[int]) -> list[Factors] | None:
        """``atom`` as segments of ``sizes``, refining it when it is a leaf."""
        if not self.known(atom).parts:
            self._refine(atom, "concat", [self.new(Size(size)) for size in sizes])
        segments = self._segments([atom])
        found = [self._total(segment).number for segment in segments]
        return segments if found == list(sizes) else None

    def _segments(self, factors: Factors) -> list[Factors]:
        """A concatenation as the list of its segments, nested ones opened."""
        found, pending = [], [factors[0]]
        while pending:
            root = self.root(pending.pop())
            known = self._classes[root]
            if known.joined == "concat":
                pending.extend(reversed(known.parts))
            else:
                found.append([root])
        return found

    def _unite(self, one: int, other: int, pending: Pairs) -> None:
        """Make two atoms of the same size equal; their segments are matched when both have some."""
        one, other = self.root(one), self.root(other)
        if one == other:
            return
        first, second = self._classes[one], self._classes[other]
        if first.parts and second.parts and not self._align(one, other, pending):
            self.block((one, other), "two ways of cutting it into segments do not agree")
        # The class that has been refined says more; the other one is a leaf, and takes over its parts.
        known = first if first.parts else second
        marks = {**second.marks, **first.marks}
        self._union.union(one, other)
        del self._classes[one], self._classes[other]
        root = self.root(one)
        self._classes[root] = known
        known.marks = marks
        # The parts that the leaf has just got inherit what was said of it.
        for mark, reason in marks.items():
            self.mark(root, mark, reason)

    def _align(self, one: int, other: int, pending: Pairs) -> bool:
        """Match the segments of two concatenations, cutting the longer ones."""
        left, right = self._segments([one])[::-1], self._segments([other])[::-1]
        while left and right:
            first, second = left.pop(), right.pop()
            difference = self._total(first).number - self._total(second).number
            if difference > 0:
                first = self._shorten(left, first, self._total(second))
            elif difference < 0:
                second = self._shorten(right, second, self._total(first))
            if not first or not second:
                return False
            pending.append((first, second))
        return True

    def _shorten(self, segments: list[Factors], segment: Factors, size: Size) -> Factors:
        """The first ``size`` of a segment, the rest goes back on the stack; empty if it cannot be cut."""
        factors = self._flat(segment)
        sizes = [size, Size(self._total(factors).number - size.number)]
        parts = self._spread(factors, sizes) if factors else None
        if parts is None:
            return []
        segments.append(parts[1])
        return parts[0]

    def _absorb(self, single: Factors, factors: Factors) -> bool:
        """Let one leaf of unknown size be the product of ``factors``."""
        if (
            len(single) != 1
            or self.known(single[0]).parts
            or self.size(single[0]).fixed
            # A size that contained itself would never end.
            or single[0] in factors
        ):
            return False
        known = self.known(single[0])
        known.size = self._total(factors)
        if len(factors) > 1:
            self._refine(single[0], "product", factors)
        elif factors:
            self._unite(single[0], factors[0], [])
        return True
