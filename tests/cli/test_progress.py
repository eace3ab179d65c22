"""The line that tells how far a run is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from graphcompress.cli.progress import RunStep, shown_on

STAGES = ("read and run the model", "prune{ffn=0.5}", "int8", "lower for cpu", "measure speed")


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def step(clock: Clock) -> RunStep:
    return RunStep(STAGES, clock)


def test_the_line_names_the_step_its_share_and_the_time_that_is_left(step: RunStep, clock: Clock) -> None:
    step.report("prune{ffn=0.5}", 0, 1)
    step.report("prune: refit", 0, 100)
    clock.now += 9.0
    step.report("prune: refit", 43, 100)
    assert step.line(100) == "[2/5] prune · refit · 43 % · 0:12 left"


def test_details_go_before_figures_where_there_is_little_room(step: RunStep, clock: Clock) -> None:
    step.report("int8", 0, 1)
    step.report("calibrate on samples", 0, 4)
    clock.now += 4.0
    step.report("calibrate on samples", 2, 4, "sentence 150")
    assert step.line(100) == "[3/5] int8 · calibrate on samples · 50 % · 0:04 left · sentence 150"
    assert step.line(60) == "[3/5] int8 · calibrate on samples · 50 % · 0:04 left"
    assert step.line(40) == "[3/5] int8 · 50 % · 0:04 left"


def test_work_of_unknown_length_says_how_long_it_has_taken(step: RunStep, clock: Clock) -> None:
    step.report("int8", 0, 1)
    assert step.line(100) == "[3/5] int8"
    clock.now += 3700.0
    assert step.line(100) == "[3/5] int8 · 1:01:40 so far"


def test_a_pass_that_counts_its_own_steps_says_its_share(step: RunStep, clock: Clock) -> None:
    """A training and kron report under the name of the pass itself."""
    step.report("int8", 0, 1)
    clock.now += 5.0
    step.report("int8", 0, 80)
    clock.now += 9.0
    step.report("int8", 34, 80)
    assert step.line(100) == "[3/5] int8 · 42 % · 0:12 left"


def test_what_goes_on_in_the_middle_knows_how_long_the_rest_takes(step: RunStep, clock: Clock) -> None:
    step.report("int8", 0, 1)
    step.report("evaluate", 0, 1)
    clock.now += 5.0
    step.report("int8", 40, 80)
    clock.now += 10.0
    step.report("int8", 60, 80)
    assert step.line(100) == "[3/5] int8 · 75 % · 0:10 left"


def test_commands_without_steps_show_their_work(clock: Clock) -> None:
    step = RunStep((), clock)
    step.report("measure 1×128", 5, 20)
    assert step.line(100) == "measure 1×128 · 25 %"


def test_where_there_is_no_terminal_a_line_is_printed_now_and_then() -> None:
    said = io.StringIO()
    with shown_on(Console(file=said, width=80), STAGES, seconds=0.001) as progress:
        progress("int8", 0, 1)
        while not said.getvalue().endswith("[3/5] int8\n"):
            pass
    lines = said.getvalue()
    assert "[3/5] int8\n" in lines


def test_a_short_run_prints_nothing_where_there_is_no_terminal() -> None:
    said = io.StringIO()
    with shown_on(Console(file=said, width=80), STAGES) as progress:
        progress("int8", 0, 1)
    assert said.getvalue() == ""


def test_work_that_begins_again_under_its_name_is_timed_anew(step: RunStep, clock: Clock) -> None:
    """A pass that trains, fills zeros, and trains again says the same text twice."""
    step.report("int8", 0, 100)
    step.report("int8", 60, 100)
    clock.now += 3600.0
    step.report("int8", 10, 100)
    clock.now += 9.0
    step.report("int8", 40, 100)
    assert step.line(100) == "[3/5] int8 · 40 % · 0:18 left"
