"""score-masks: the instrument, its schedule, and what it leaves in the graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphcompress.coupling.couplings import FFN
from graphcompress.errors import UsageError
from graphcompress.instruments.score_masks.layout import (
    ATTENTION,
    BOTH,
    DIMS,
    HEADS,
    NONE,
    ROWS,
    Grain,
)
from graphcompress.plugin.instrument import Attached, Instrument, Step
from graphcompress.plugin.options import option

if TYPE_CHECKING:
    from torch import fx

SELECTIONS = ("sigmoid", "threshold", "topk", "magnitude", "l0")
FIRST: Mapping[str, float] = {"sigmoid": 0.0, "threshold": 1.0, "topk": 0.0, "magnitude": 0.0, "l0": 2.5}
"""Score of everything at the start: the threshold that each selection begins with is below."""


@dataclass(frozen=True)
class ScoreMasks(Instrument):
    """Learn which blocks, heads and FFN nodes of a model stay (block pruning, arXiv:2109.04838).

    A score stands for every block of a weight (``32x32``: 32 features inside an attention or FFN by 32 of
    what comes in or goes out; ``joint-32x32``: the weights of one attention that have the same sizes share
    them), for every head (of queries, keys, values and output at once), for every FFN node (``dims``: rows of
    the first weight and columns of the second), for every inner feature of one weight (``rows``), or for its
    rows and its columns (``1d``). What belongs together comes from the couplings of the graph. A weight is
    multiplied by the mask of its scores, and a bias goes with what it is a bias of. The gradient of a score
    is that of its mask: the sum over the block of gradient times weight.

    What is above a cut stays. ``sigmoid``: the sigmoid of a score is compared with ``threshold``, which rises
    from 0 as a cubic, flat at first, and stands still while the student cools down. ``threshold``: the score
    itself is. ``topk``: as many stay as the density of the step allows. ``magnitude``: so they do, by the
    mean magnitude of a block. ``l0``: hard concrete gates (arXiv:1712.01312). With ``ema`` a moving mean of
    importance takes the place of the learned score: the size of gradient · weight, by parameter (GRAIN).

    Scores begin ``spread`` apart: by the squared gradients of their masks, by parameter, summed while nothing
    goes yet (Fisher information, arXiv:2204.09656). The paper begins with equal scores, ``spread=0``, which a
    student that starts as its teacher's copy moves by chance at first.

    With ``density`` a multiplier grows with what is too much and draws the scores down (a Lagrangian, as in
    CoFi, arXiv:2204.00408), the cut lets no more go than the schedule asks for, and masks settle at what was
    asked when the cool-down begins. With ``penalty`` the regulariser has that weight, and the density comes
    out as it does.
    """

    name: ClassVar[str] = "score-masks"
    attention: str = option("32x32", "scores in attentions: none, heads, dims, rows, 1d, 32x32, joint-32x32")
    ffn: str = option("dims", "scores in FFNs: none, dims, rows, 1d, 32x32, joint-32x32")
    selection: str = option("sigmoid", "what stays", choices=SELECTIONS)
    density: float | None = option(0.5, "share of their parameters to reach", minimum=0.001, maximum=1.0)
    compact: bool = option(False, "zeros in what is not cut count as parameters of the density, too")
    attention_weight: float | None = option(
        None, "of attentions in a compact density; none: their parameters", minimum=0.0, maximum=1.0
    )
    penalty: float | None = option(None, "weight of the regulariser, in place of a density", minimum=0.0)
    ffn_penalty: float = option(1.0, "of FFNs, as a multiple of it", minimum=0.0)
    threshold: float = option(0.1, "of what stays, at the end", minimum=0.0, maximum=1.0)
    flat: float = option(0.05, "share of the steps before anything goes", minimum=0.0, maximum=1.0)
    cooldown: float = option(0.4, "share of the steps after the last goes", minimum=0.0, maximum=1.0)
    score_lr: float = option(0.01, "highest learning rate of the scores", minimum=0.0)
    spread: float = option(
        1.0,
        "distance from the mean at which scores begin, by their Fisher information; 0: all alike",
        minimum=0.0,
    )
    ema: float = option(0.0, "share of its former value that importance keeps", minimum=0.0, maximum=0.9999)
    apart: bool = option(True, "losses inside the graph train weights alone, no scores")
    only: str = option("*", "glob over the names of the weights that are masked")

    def __post_init__(self) -> None:
        super().__post_init__()
        if all(grain.name == NONE for grain in self.grains.values()):
            raise UsageError(f"{self}: nothing is scored, so that nothing can go; let one kind have scores")
        if (self.density is None) == (self.penalty is None):
            raise UsageError(f"{self}: give density or penalty, and none for the other")
        if not self.compact:
            self.refuse_idle("attention_weight", "it is of compact densities")
        if self.penalty is None:
            self.refuse_idle("ffn_penalty", "a density needs no penalty")
        if self.selection in ("topk", "magnitude") and self.density is None:
            raise UsageError(f"{self}: {self.selection} keeps a share; give a density")
        if self.ema and self.selection != "topk":
            raise UsageError(f"{self}: ema ranks by importance; give selection=topk")
        if self.selection == "magnitude" or self.ema:
            self.refuse_idle("spread score_lr", "scores are measured from the start, not learned")
        if self.selection not in ("sigmoid", "threshold"):
            self.refuse_idle("threshold", f"{self.selection} compares with none")
        if self.selection == "sigmoid" and self.threshold in (0.0, 1.0):
            raise UsageError(f"{self}: no sigmoid is {self.threshold:g}; give a threshold between 0 and 1")
        if self.penalty is not None and not self.score_lr:
            raise UsageError(f"{self}: with score_lr=0 a penalty moves nothing; give a rate")
        if self.flat + self.cooldown >= 1:
            raise UsageError(
                f"{self}: flat and cooldown take all steps, so that nothing would ever go; "
                "give shares whose sum is below 1"
            )

    @property
    def grains(self) -> dict[str, Grain]:
        """How finely each kind is scored."""
        return {
            ATTENTION: Grain.parse(self.attention, f"{self}: attention", (NONE, HEADS, DIMS, ROWS, BOTH)),
            FFN: Grain.parse(self.ffn, f"{self}: ffn", (NONE, DIMS, ROWS, BOTH)),
        }

    @property
    def first(self) -> float:
        """Score of everything at the start."""
        return FIRST[self.selection]

    def attach(self, student: fx.GraphModule) -> Attached:
        """Multiply the weights of the couplings by masks."""
        from graphcompress.instruments.score_masks.attached import AttachedMasks

        return AttachedMasks(self, student)

    # ---- schedule

    def progress(self, step: Step) -> float:
        """How far the cubic has come: 0 while flat, 1 in the cool-down."""
        first, last = self.flat * step.steps, (1 - self.cooldown) * step.steps
        done = min(1.0, max(0.0, (step.number - first) / max(1.0, last - first)))
        return 1 - (1 - done) ** 3

    def cooling(self, step: Step) -> bool:
        """Whether nothing goes any more."""
        return step.number >= (1 - self.cooldown) * step.steps

    def cut_at(self, progress: float) -> float:
        """The score above which something stays; the threshold rises from 0."""
        threshold = self.threshold * progress
        if self.selection == "threshold":
            return threshold
        # Scores are compared before their sigmoid, whose inverse is infinite at 0 and at 1.
        return (
            math.log(threshold / (1 - threshold))
            if 0 < threshold < 1
            else math.copysign(math.inf, threshold - 0.5)
        )

    def obstacle(self, steps: int) -> str:
        """Why a run of so many steps cannot prune what is asked for, or nothing."""
        falling = (1 - self.flat - self.cooldown) * steps
        if falling < 1:
            what = (
                "nothing goes" if self.density is None else "all goes at once, by scores that learned little"
            )
            return f"of {steps} steps none lies between flat and cooldown, so that {what}; train longer"
        if self.density is not None or self.selection == "l0":
            return ""
        way = abs(self.first - self.cut_at(1.0))
        reach = self.score_lr * (1 - self.cooldown) * steps
        if reach < way:
            return (
                f"scores move by at most {reach:.2g} in {steps} steps, and nothing goes before {way:.2g}; "
                f"train longer, or give score_lr={_above(self.score_lr * way / max(reach, 1e-9)):g} or more"
            )
        return ""


def _above(number: float) -> float:
    """A little more than ``number``, short to type."""
    digits = 10.0 ** math.floor(math.log10(number))
    return math.ceil(number / digits * 10) * digits / 10
