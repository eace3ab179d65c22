"""Progress over a whole run: one line says which step it is at, how far that is, how long it takes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.progress import Progress as Bars
from rich.progress import ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from graphcompress.plugin.legible import legible
from graphcompress.training.processes import rank

if TYPE_CHECKING:
    from rich.console import Console

    from graphcompress.plugin.context import Progress

SECONDS_PER_LINE = 10.0
"""Where progress does not go to a terminal, a line of it is printed every so many seconds."""

LEAST_SECONDS = 1.0
"""Work that has taken less than that says nothing yet about how long the rest of it takes."""


@dataclass
class RunStep:
    """What is under way: the step of the run, and the work inside of it."""

    stages: Sequence[str]
    clock: Callable[[], float] = time.monotonic
    stage: str = ""
    work: str = ""
    share: float = 0.0
    detail: str = ""
    _began: float = field(default=0.0)
    _first: float = field(default=0.0)

    def report(self, text: str, done: int, total: int, detail: str = "") -> None:
        """Take in that ``done`` of ``total`` steps of ``text`` are finished."""
        own = text in self.stages
        if own and text != self.stage:
            self.stage, self.work = text, ""
        inner, share = "" if own else text, min(1.0, done / total) if total > 0 else 0.0
        # A pass that works twice under one name begins again.
        if inner != self.work or share < self.share or (own and not done):
            self.work, self._began, self._first = inner, self.clock(), share
        self.share, self.detail = share, detail

    def line(self, width: int) -> str:
        """``[2/5] prune · 43 % · 0:12 left``, in at most ``width`` characters: what says least goes first."""
        names = [_name(self.stage), self.work.removeprefix(f"{_name(self.stage)}: ")]
        number = f"[{self.stages.index(self.stage) + 1}/{len(self.stages)}] " if self.stage else ""
        figures = self._figures()
        for told in ([*names, *figures, self.detail], [*names, *figures], [names[0], *figures]):
            text = number + " · ".join(dict.fromkeys(filter(None, told)))
            if len(text) <= width:
                break
        return text

    def _figures(self) -> list[str]:
        spent = self.clock() - self._began if self._began else 0.0
        if not 0.0 < self.share < 1.0:
            return [f"{_time(spent)} so far"] if spent >= LEAST_SECONDS else []
        # A training goes on after an evaluation, or from a checkpoint: what was done before took other time.
        done = self.share - self._first
        told = spent >= LEAST_SECONDS and done > 0
        left = f"{_time(spent * (1 - self.share) / done)} left" if told else ""
        return [f"{self.share:.0%}".replace("%", " %"), left]


def _name(stage: str) -> str:
    """A pass or a target without its options."""
    return stage.partition("{")[0]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class _Line(ProgressColumn):
    """The line of a run, made anew whenever the terminal is drawn."""

    max_refresh = 0.2

    def __init__(self, step: RunStep, console: Console) -> None:
        super().__init__()
        self._step, self._console = step, console

    def render(self, task: Task) -> Text:
        """The line as it is now, beside the spinner."""
        # The spinner takes the rest of the columns.
        return Text(legible(self._step.line(self._console.width - 3)), no_wrap=True)


@contextlib.contextmanager
def shown_on(
    console: Console, stages: Sequence[str] = (), *, seconds: float = SECONDS_PER_LINE
) -> Iterator[Progress]:
    """Progress of a run of ``stages`` on ``console``: a line that is gone at the end.

    Where it is no terminal, a line is printed every so many ``seconds``.
    """
    step = RunStep(stages)
    if rank() > 0:
        yield step.report
        return
    if console.is_terminal or console.is_jupyter:
        with Bars(SpinnerColumn(), _Line(step, console), console=console, transient=True) as bars:
            bars.add_task("", total=None)
            yield step.report
        return
    ended = threading.Event()
    # A thread, as long work may not report for minutes, and a log without a line looks like one that hangs.
    printer = threading.Thread(target=_print_lines, args=(console, step, ended, seconds), daemon=True)
    printer.start()
    try:
        yield step.report
    finally:
        ended.set()
        printer.join()


def progress() -> AbstractContextManager[Progress]:
    """Progress for a notebook or a script: a line while the block runs, to hand to ``progress=``.

    Use as ``with graphcompress.progress() as progress: graphcompress.optimize(…, progress=progress)``.
    """
    from rich.console import Console

    return shown_on(Console(stderr=True))


def _print_lines(console: Console, step: RunStep, ended: threading.Event, seconds: float) -> None:
    while not ended.wait(seconds):
        console.print(step.line(console.width), markup=False, highlight=False, soft_wrap=True)
