"""prune to every goal on an architecture of the matrix: it is reached, or what is possible is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from unittest.mock import patch

from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.latency import table
from graphcompress.measure.cache import Times
from graphcompress.measure.timing import Measurement
from graphcompress.measure.verify import Run, compare
from graphcompress.passes.prune.goals import BYTES, linear_parameters
from graphcompress.passes.prune.prune import Prune
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from matrix.subject import NotHeldError, Subject

KEEP, SIZE, SPEEDUP, DROP = 0.85, 0.9, 1.1, 0.1
"""Mild goals: these models are small, and much of them is no block."""

BATCH = 8


class Kept:
    """Times of one run of the tests, kept nowhere."""

    complete = False

    def __init__(self) -> None:
        self._times: dict[str, Times] = {}

    def get(self, key: str) -> Times | None:
        """Times that were put."""
        return self._times.get(key)

    def put(self, key: str, times: Times) -> None:
        """Keep ``times``."""
        self._times[key] = times


def time_is_parameters(
    models: Mapping[str, Model], feeds: Sequence[object], ctx: Context, rounds: int
) -> list[Measurement]:
    """A model takes as long as its linears have parameters, and a little."""
    return [
        Measurement({name: [linear_parameters(model) + 1.0] for name, model in models.items()}) for _ in feeds
    ]


def goals_are_reached(subject: Subject) -> tuple[str, list[str]]:
    """``prune`` reaches a share of the weights, a size, a speed and a drop, or says why not."""
    told = {name: reached(name, subject.simplified(), subject.samples) for name in GOALS}
    missed = [note for note in told.values() if "asked for" not in note and "allowed" not in note]
    return f"{len(GOALS) - len(missed)} of {len(GOALS)}", list(dict.fromkeys(missed))


GOALS = ("keep", "size", "speedup", "max_drop")


def reached(name: str, model: Model, samples: Samples) -> str:
    """Prune ``model`` to the goal ``name`` by ``samples``; what was reached, as told, or why it cannot be.

    Raises:
        NotHeldError: the goal was missed without a word.
    """
    feeds = list(samples.batches(BATCH))
    with Runner(model) as runner:
        expected = [runner(feed) for feed in feeds]

    def drop(run: Run) -> float:
        return 10 ** (-compare(expected, run, feeds).sqnr_db / 20)

    parameters, stored = linear_parameters(model), BYTES.of(model)
    options = {
        "keep": {"keep": KEEP},
        "size": {"size": f"{SIZE * stored / 1000:.3f}kB"},
        "speedup": {"speedup": SPEEDUP, "shapes": "1x8"},
        "max_drop": {"max_drop": DROP, "shapes": "1x8"},
    }[name]
    ctx = Context(samples=samples, drop=drop, measurements=Kept())
    prune = Prune(round_to=1, **options)
    try:
        with patch.object(table, "timed", time_is_parameters):
            prune.check(model, ctx)
            record = prune.run(model, ctx)
    except UsageError as error:
        if "at least" in str(error) or "at most" in str(error):
            return str(error)
        raise
    except DataError as error:
        # A mask over past and new tokens whose length the file does not say to be their sum.
        if "shapes" not in options:
            raise
        return f"shapes={options['shapes']} does not fit: {error}"
    return _judged(name, record, model, parameters, stored, drop)


def _judged(name: str, record: Record, model: Model, parameters: int, stored: float, drop: object) -> str:
    """The note on what was reached, when it was.

    Raises:
        NotHeldError: it was not.
    """
    said = next((note for note in record.notes if "asked for" in note or "allowed" in note), "")
    nothing = next((note for note in record.notes if "nothing" in note), "")
    with Runner(model) as runner:
        lost = drop(runner) if name == "max_drop" and callable(drop) else 0.0
    met = {
        "keep": linear_parameters(model) <= KEEP * parameters,
        "size": BYTES.of(model) <= SIZE * stored,
        "speedup": (parameters + 1) / (linear_parameters(model) + 1) >= SPEEDUP,
        "max_drop": lost <= DROP + 1e-4,
    }[name]
    if not (met and said) and not nothing:
        raise NotHeldError(f"{name}: {'; '.join(record.notes) or 'nothing is told'}")
    return said or nothing
