"""Goals on models that write: a size is met over all files, and cut models answer as masked ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from onnxruntime import InferenceSession
from sequence_models import TOKENS, prompt, saved, text

from graphcompress.artifact.configuration import write_configuration
from graphcompress.coupling.couplings import couplings
from graphcompress.coupling.layers import layers
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.prune.blocks import blocks_of
from graphcompress.passes.prune.carve import carve
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.goals import BYTES, PARAMETERS, smaller
from graphcompress.passes.prune.prune import Prune
from graphcompress.passes.prune.whole_layers import bundles
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


def planned(model: Model, samples) -> GoalPlanner:
    with Rewriter(model, Context()) as rw:
        blocks = [block for block in blocks_of(rw, couplings(model), "*") if block.plain]
    return GoalPlanner(model, blocks, Context(samples=samples), "obs", 1, refit=True)


@pytest.mark.parametrize(
    ("name", "measure"),
    [("bert", BYTES), ("t5", BYTES), ("gpt2", PARAMETERS), ("llama", BYTES)],
)
def test_a_size_is_met_in_all_files_and_the_cut_model_answers_as_the_masked_one(
    name, measure, request
) -> None:
    if name == "bert":
        model, samples = Model(ir.from_proto(Bert().model())), random_samples(10)
    else:
        model = Model.load(request.getfixturevalue("sequence_folders")[name])
        Simplify().run(model, Context())
        samples = varied_samples(model, seed=0)
    wanted = 0.8 * measure.of(model)
    planner = planned(model, samples)
    reached = smaller(planner, wanted, measure, "*")
    masked = planner.running(reached.removals)
    expected = [masked(feed) for feed in planner.trial.feeds[:2]]
    with Rewriter(model, Context()) as rw:
        carve(rw, [removal for removal in reached.removals if len(removal.removed)])
    assert 0.95 * wanted < measure.of(model) <= wanted
    with Runner(model) as runner:
        for feed, was in zip(planner.trial.feeds, expected, strict=False):
            for output, array in runner(feed).items():
                if array.shape == was[output].shape:
                    np.testing.assert_allclose(array, was[output], atol=1e-5 * np.abs(was[output]).max())


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_a_decoder_layer_goes_first_and_from_all_files(name, sequence_folders, tmp_path) -> None:
    """What is written step by step is what the first pass over the whole text says."""
    model = Model.load(sequence_folders[name])
    Simplify().run(model, Context())
    assert [len(several) for several in bundles(layers(model))] == [1, 1, 2, 2]
    record = Prune(layers=1).run(model, Context(samples=varied_samples(model, seed=0)))
    assert [len(several) for several in bundles(layers(model))] == [1, 1, 2]
    assert "caches keep their layout" in record.notes[-1]
    folder = saved(model, tmp_path / "short")
    tokens = text(name, folder)
    given, first = prompt(name)
    tokens = tokens if tokens.shape[1] > TOKENS else np.concatenate([first, tokens], axis=1)
    encoder, decoder = (InferenceSession(folder / f"{part}_model.onnx") for part in ("encoder", "decoder"))
    states = encoder.run(None, given)[0]
    names = {value.name for value in decoder.get_inputs()}
    feed = {"input_ids": tokens[:, :-1], "encoder_hidden_states": states}
    feed["encoder_attention_mask"] = given["attention_mask"]
    logits = decoder.run(["logits"], {key: array for key, array in feed.items() if key in names})[0]
    np.testing.assert_array_equal(logits.argmax(axis=-1), tokens[:, 1:])


def test_the_decoder_keeps_one_layer_until_the_encoder_has_none_to_spare(sequence_folders) -> None:
    model = Model.load(sequence_folders["t5"])
    Simplify().run(model, Context())
    Prune(layers=2).run(model, Context(samples=varied_samples(model, seed=0)))
    assert [len(several) for several in bundles(layers(model))] == [1, 2]


def test_a_cache_that_a_layer_left_behind_is_no_smaller_and_the_configuration_is_told(
    sequence_folders, tmp_path
) -> None:
    """Its heads stay, whatever goes elsewhere: one number cannot say both."""
    model = Model.load(sequence_folders["llama"])
    Simplify().run(model, Context())
    Prune(layers=1, heads=0.5, scope="layer").run(model, Context(samples=varied_samples(model, seed=0)))
    shutil.copy(sequence_folders["llama"] / "config.json", tmp_path)
    notes = write_configuration(model, tmp_path)
    assert any(
        "config.json has one 'num_key_value_heads', and the decoder has 2, 4" in note for note in notes
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_key_value_heads"] == 4
