"""What a model says after steps with its own cache: the error of every step is in those that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sequence_models import VOCABULARY, random_texts

from graphcompress.data.sequences import sequence_samples
from graphcompress.data.teacher_forced import texts_of
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.graph.model import Model
from graphcompress.measure.own_cache import STEPS, own_cache

NAMES = ["marian", "llama", "t5, merged"]


def noisy(model: Generator, role: str, size: float) -> Generator:
    """``model`` whose part ``role`` returns keys and values with noise of ``size``, and exact logits."""

    def run(feed):
        found = model.runs[role](feed)
        rng = np.random.default_rng(0)
        return {
            name: array + size * rng.standard_normal(array.shape).astype(np.float32)
            if name.startswith("present")
            else array
            for name, array in found.items()
        }

    return dataclasses.replace(model, runs={**model.runs, role: run})


def texts(name: str, folder: Path):
    model = Model.load(folder)
    return texts_of(model, sequence_samples(model, random_texts(name.partition(",")[0], 3)))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_no_way_from_itself(name: str, sequence_folders: Mapping[str, Path]) -> None:
    model = open_generator(sequence_folders[name])
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, eos_token_id=()))
    found = own_cache(model, model, texts(name, sequence_folders[name]))
    assert found is not None
    assert (found.texts, found.agreement, found.divergence) == (3, 1.0, 0.0)
    assert found.steps == (3 * STEPS if name != "llama" else found.steps)


@pytest.mark.parametrize(("name", "role"), [("marian", "decoder_with_past"), ("llama", "decoder_with_past")])
def test_noise_in_a_cache_of_its_own_is_seen_in_what_follows(
    name: str, role: str, sequence_folders: Mapping[str, Path]
) -> None:
    """The logits of each step are exact given its past: only a cache of its own shows the noise."""
    model = open_generator(sequence_folders[name])
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, eos_token_id=()))
    given = texts(name, sequence_folders[name])
    small, large = (own_cache(model, noisy(model, role, size), given) for size in (0.01, 1.0))
    assert small is not None
    assert large is not None
    assert 0.0 < 100 * small.divergence < large.divergence
    assert large.agreement < small.agreement <= 1.0


def test_texts_that_end_at_once_have_no_step(sequence_folders: Mapping[str, Path]) -> None:
    model = open_generator(sequence_folders["marian"])
    every = tuple(range(VOCABULARY))
    ended = dataclasses.replace(model, settings=dataclasses.replace(model.settings, eos_token_id=every))
    assert own_cache(ended, ended, texts("marian", sequence_folders["marian"])) is None
