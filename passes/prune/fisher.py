"""Fisher information of masks over heads and FFN nodes: how much the loss depends on each of them.

A unit has a mask of one; its Fisher information is the sum over samples of the squared gradient of the loss
with respect to the mask (Kwon et al., A Fast Post-Training Pruning Framework for Transformers,
arXiv:2204.09656).
"""

from __future__ import annotations

import numpy as np

from graphcompress.data.load import Samples
from graphcompress.passes.prune.blocks import Block
from graphcompress.passes.prune.trial_model import TrialModel
from graphcompress.plugin.context import Progress


def fisher_information(
    trial: TrialModel, samples: Samples, seed: int, progress: Progress
) -> dict[Block, np.ndarray]:
    """[units] of every block: squared gradients of the mask, summed over the samples."""
    from graphcompress.training.gradients import input_gradients

    given = trial.given({})
    weights = {block: trial.weight_name(block) for block in trial.fits}
    found = {block: np.zeros(block.size) for block in trial.fits}
    for index, gradients in enumerate(input_gradients(trial.twin, given, samples, seed)):
        progress("prune: Fisher information", index, len(samples))
        for block, name in weights.items():
            # A mask multiplies what is read, which is to multiply the rows that read it.
            rows = (given[name] * gradients[name]).sum(axis=1, dtype=np.float64)
            found[block] += np.square(rows[block.rows].sum(axis=1))
    progress("prune: Fisher information", len(samples), len(samples))
    return found
