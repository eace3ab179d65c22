"""Some attacks of the campaign; ``make attack`` runs hundreds."""

import itertools

import pytest

from attack.__main__ import attacked
from attack.files import attacks, hostile
from attack.situations import kills, situations

FILES = dict(itertools.islice(attacks(0), 37))
CHOSEN = ("names", "sizes with escapes", "brackets", "doubling functions", "a function that calls itself")
CHOSEN += ("data c.jsonl", "tokenizer whose library panics")
FOUND = (("flip", 3450340716), ("flip", 38212703), ("checkpoint", 3943786419), ("checkpoint", 2655874620))
"""Random files that once ended in an unexpected error: a name that is no text, settings of a wrong type."""


@pytest.mark.parametrize("name", CHOSEN)
def test_a_hostile_file(name):
    assert attacked(FILES[name])[1] is None


@pytest.mark.parametrize(("kind", "number"), FOUND)
def test_a_file_that_was_found_at_random(kind, number):
    assert attacked(hostile(kind, number))[1] is None


@pytest.mark.parametrize(
    "name",
    [
        "RANK without a process group",
        "a pod that is the second of a group",
        "cp1252",
        "full stdout",
        "a working folder that is gone",
        "a folder that may not be written",
    ],
)
def test_a_situation(name):
    assert dict(situations())[name]()[1] is None


def test_a_kill():
    _, attempt = next(kills(3))
    assert attempt()[1] is None
