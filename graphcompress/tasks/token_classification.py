"""token-classification: a class for each token; its metrics are those of text-classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.samples import padding_mask
from graphcompress.errors import DataError
from graphcompress.plugin.task import Task


@dataclass(frozen=True)
class TokenClassification(Task):
    """One list of classes for each text: the largest logit of every token that is no padding.

    Where a token has a single logit, it is of the class 1 above 0.
    """

    name: ClassVar[str] = "token-classification"
    outputs: ClassVar[tuple[str, ...]] = ("*logit*",)

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether the first output has several answers per sample."""
        return next(iter(ranks.values()), 0) > 2

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> list[list[int]]:
        """Lists of classes, as long as the texts.

        Raises:
            DataError: no output has logits for every token.
        """
        found = (a for a in outputs.values() if np.issubdtype(a.dtype, np.floating) and a.ndim > 2)
        logits = next(found, None)
        if logits is None:
            raise DataError(f"task {self.name!r} needs an output [batch, sequence, classes]")
        chosen = logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0).astype(np.int64)
        mask = padding_mask(feed)
        return [(row if mask is None else row[mask[index]]).tolist() for index, row in enumerate(chosen)]
