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
from graphcompress.errors import UnsupportedModelError
from graphcompress.generation.generator import Generator, open_generator
from graphcompress.graph.model import Model
from graphcompress.measure.own_cache import STEPS, own_cache, verified_caches
from graphcompress.numerics.metrics import NEVER

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


@pytest.mark.parametrize("name", [*NAMES, "gpt2", "whisper"])
def test_steps_with_a_cache_say_what_one_pass_says(name: str, sequence_folders: Mapping[str, Path]) -> None:
    model = open_generator(sequence_folders[name])
    found = verified_caches(model, model, texts(name, sequence_folders[name]))
    assert found is not None
    for one in found[1:]:
        assert (one.texts, one.agreement) == (3, 1.0)
        assert one.error < 1e-5
        assert not one.is_broken


def test_steps_end_where_the_positions_do(sequence_folders: Mapping[str, Path]) -> None:
    """A decoder of 32 positions, the first of which is its start; the runtime refuses a row beyond them."""
    model = open_generator(sequence_folders["whisper"])
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, eos_token_id=()))
    found = own_cache(model, model, texts("whisper", sequence_folders["whisper"]))
    assert found is not None
    assert (model.longest[1], found.steps) == (32, 3 * 31)
    unknown = dataclasses.replace(model, longest=(None, None))
    assert own_cache(unknown, unknown, texts("whisper", sequence_folders["whisper"])) == found


@pytest.mark.parametrize("broken", ["reference", "other"])
def test_past_that_a_step_cannot_read_is_an_error(broken: str, sequence_folders: Mapping[str, Path]) -> None:
    model = open_generator(sequence_folders["llama"])
    (role, run), *_ = model.runs.items()

    def cut(feed):
        found = run(feed)
        return {name: array[:, :1] if name.startswith("present") else array for name, array in found.items()}

    other = dataclasses.replace(model, runs={role: cut})
    pair = (other, model) if broken == "reference" else (model, other)
    with pytest.raises(
        UnsupportedModelError, match=r"model\.onnx: a step with the keys .* past than it reads"
    ):
        own_cache(*pair, texts("llama", sequence_folders["llama"]))


@pytest.mark.parametrize(
    ("size", "broken"), [(0.0, False), (0.01, False), (3.0, True)], ids=["exact", "rounded", "broken"]
)
def test_a_broken_cache_is_told_from_a_rounded_one(
    size: float, broken: bool, sequence_folders: Mapping[str, Path]
) -> None:
    """First passes and the logits of a step, given its past, are exact: outputs alone show nothing."""
    model = open_generator(sequence_folders["llama"])
    found = verified_caches(
        model, noisy(model, "decoder_with_past", size), texts("llama", sequence_folders["llama"])
    )
    assert found is not None
    assert (found[1].is_broken, found[2].is_broken) == (False, broken)
    assert (size == 0.0) == (found[2].error < 1e-5)


def test_dropped_tokens_do_not_hide_a_broken_cache(sequence_folders: Mapping[str, Path]) -> None:
    """The stand-in of a dropped token is larger than all scores together, and the same in step and pass."""
    model = open_generator(sequence_folders["llama"])
    broken = noisy(model, "decoder_with_past", 3.0)
    (role, run), *_ = broken.runs.items()

    def dropped(feed):
        found = dict(run(feed))
        found["logits"] = np.where(np.arange(VOCABULARY) < 5, NEVER, found["logits"])
        return found

    given = texts("llama", sequence_folders["llama"])
    found = verified_caches(model, dataclasses.replace(broken, runs={role: dropped}), given)
    assert found is not None
    assert found[2].is_broken
