"""The configurations of KroneckerBERT, at any width.

Tahaei et al., arXiv:2109.06243, Table 1; the 19x is that of its first version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphcompress.numerics.kronecker import Split

Role = Literal["attention", "ffn", "embedding"]


@dataclass(frozen=True)
class Preset:
    """Sizes of the small factors, [in, out]; the large ones follow from the weight.

    Attributes:
        attention: B of the weights that make queries, keys, values and the output.
        widening: A of the first weight of an FFN; the second has it the other way round.
        embedding: n, the width of B of the word embedding.
    """

    attention: tuple[int, int]
    widening: tuple[int, int]
    embedding: int

    def split(self, role: Role, in_features: int, out_features: int) -> Split | None:
        """The factorisation of a weight [in, out] or a table [rows, width]; None when sizes do not divide."""
        if role == "embedding":
            split = Split(in_features, out_features // self.embedding, 1, self.embedding)
        elif role == "attention":
            n2, m2 = self.attention
            split = Split(in_features // n2, out_features // m2, n2, m2)
        else:
            n1, m1 = self.widening if in_features <= out_features else self.widening[::-1]
            split = Split(n1, m1, in_features // n1, out_features // m1)
        return split if (split.in_features, split.out_features) == (in_features, out_features) else None


PRESETS = {
    "k8": Preset((2, 2), (2, 8), 8),
    "k19": Preset((16, 2), (2, 16), 12),
    "k21": Preset((16, 2), (2, 16), 16),
}
