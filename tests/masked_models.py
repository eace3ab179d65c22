"""Models under masks of random scores: as they are trained, as they are stored, and cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from graphcompress.fx import to_fx
from graphcompress.graph.model import Model
from graphcompress.instruments.score_masks.score_masks import ScoreMasks
from graphcompress.passes.blockprune.compact import compact
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

PRESETS = {
    "block": ScoreMasks(attention="8x8", ffn="8x8"),
    "struct": ScoreMasks(attention="heads", ffn="dims"),
    "hybrid": ScoreMasks(attention="8x8", ffn="dims"),
    "joint": ScoreMasks(attention="joint-8x16", ffn="joint-4x8"),
    "rows": ScoreMasks(attention="rows", ffn="rows"),
    "dims": ScoreMasks(attention="dims", ffn="dims"),
    "1d": ScoreMasks(attention="1d", ffn="1d"),
    "uneven": ScoreMasks(attention="7x5", ffn="9x11"),
    "gates": ScoreMasks(attention="heads", ffn="dims", selection="l0"),
}


def attached(model: Model, masks: ScoreMasks):
    """The instrument at work on a student of ``model``."""
    student = to_fx(model)
    student.meta["model"] = model
    return masks.attach(student)


def shuffled(work, seed: int = 0, kept: float = 0.5) -> None:
    """Random scores of which the share ``kept`` stays; whole heads and nodes go in every weight."""
    rng = np.random.default_rng(seed)
    for each in work.scores:
        values = rng.standard_normal(each.values.shape)
        if values.ndim == 2:
            values += 1.5 * rng.standard_normal((len(values), 1))
        if each.selection == "l0":
            values = 3 * values - 2
        each.values.data = torch.from_numpy(values).float()
        if each.selection != "l0":
            each.cut = float(np.quantile(values, 1 - kept))


def computed(work, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the student."""
    names = work.student.meta["inputs"]
    tensors = {key: torch.from_numpy(np.ascontiguousarray(feed[name])) for key, name in names.items()}
    with torch.no_grad():
        return {name: tensor.numpy() for name, tensor in work.student(**tensors).items()}


def cut_copy(model: Model) -> Model:
    """A copy of ``model`` without what gives nothing."""
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        compact(rw)
    return twin
