"""Passes on models of several files: what is cut in one is cut in all, and the text stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from sequence_models import FFN as INNER
from sequence_models import HEADS, HIDDEN, NAMES, SEQ2SEQ, VOCABULARY, saved, text

from graphcompress.build.optimize import optimize
from graphcompress.coupling.couplings import FFN, HEAD, Group, couplings
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

LINEARS = 2 * 6 + 2 * 10 + 1
"""Of encoder and decoder, of two layers each, and the one that scores tokens."""


def simplified(folder: Path) -> Model:
    model = Model.load(folder)
    Pipeline.parse("simplify").run(model, Context())
    return model


def groups_of(model: Model) -> list[Group]:
    return [group for group in couplings(model) if group.kind in (FFN, HEAD)]


def kill(model: Model, unit: int = 1) -> None:
    """Let no reader listen to one unit of every FFN and of every attention."""
    with Rewriter(model, Context()) as rw:
        for group in groups_of(model):
            read = {linear.weight for linear in group.consumers}
            for part in group.slices:
                if part.value in read and part.value.const_value is not None:
                    array = part.value.const_value.numpy().copy()
                    np.moveaxis(array, part.axis, 0)[part.units == unit] = 0
                    rw.overwrite(part.value, array)


@pytest.mark.parametrize("name", NAMES)
def test_simplify_changes_no_text(name: str, sequence_folders, tmp_path) -> None:
    again = saved(simplified(sequence_folders[name]), tmp_path / "again")
    assert np.array_equal(text(name, again), text(name, sequence_folders[name]))


@pytest.mark.parametrize("name", NAMES)
def test_dead_units_go_everywhere_and_the_text_stays(name: str, sequence_folders, tmp_path) -> None:
    model = simplified(sequence_folders[name])
    kill(model)
    before = saved(model, tmp_path / "before")
    sizes = [group.size for group in groups_of(model)]
    Pipeline.parse("prune{round_to=1}").run(model, Context())
    assert [group.size + 1 for group in groups_of(model)] == sizes
    after = saved(model, tmp_path / "after")
    assert np.array_equal(text(name, after), text(name, before))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_groups_reach_through_all_parts(name: str, sequence_folders) -> None:
    model = simplified(sequence_folders[name])
    kinds = [(group.kind, group.size, len(group.consumers)) for group in groups_of(model)]
    own, both = 1, 2
    assert kinds.count((FFN, INNER, own)) == kinds.count((HEAD, HEADS, own)) == 2  # the encoder's
    assert kinds.count((FFN, INNER, both)) == 2
    assert kinds.count((HEAD, HEADS, both)) == 4  # over the tokens and over the encoder's states


@pytest.mark.parametrize("name", ["gpt2", "marian", "whisper, merged"])
def test_files_say_how_many_heads_a_cache_has_now(name: str, sequence_folders, tmp_path) -> None:
    model = simplified(sequence_folders[name])
    Pipeline.parse("prune{heads=0.25}").run(model, Context(), allow=["prune"])
    again = saved(model, tmp_path / "again")
    found = [
        value.type.tensor_type.shape.dim[1].dim_value
        for file in again.rglob("*.onnx")
        for graph in [onnx.load(file, load_external_data=False).graph]
        for value in (*graph.input, *graph.output)
        if "past" in value.name or "present" in value.name
    ]
    assert set(filter(None, found)) == {HEADS - 1}  # a variable size says nothing


def test_what_is_rounded_in_one_part_is_rounded_in_all(sequence_folders) -> None:
    model = simplified(sequence_folders["bart"])
    Pipeline.parse("int8").run(model, Context())
    rounded = [value for value in model.initializers() if value.dtype == ir.DataType.INT8]
    large = [value.const_value for value in rounded if value.const_value.size >= HIDDEN * HIDDEN]
    tables = [tensor for tensor in large if tensor.shape[0] == VOCABULARY]
    assert len(large) == len({tensor.tobytes() for tensor in large}) == LINEARS + 1
    assert len(tables) == 1  # encoder and both decoders look up in it


@pytest.mark.parametrize("name", ["marian", "t5"])
def test_the_encoder_hands_on_fewer_features_in_a_build(name: str, sequence_folders, tmp_path) -> None:
    folder = tmp_path / "narrow"
    optimize(sequence_folders[name], "prune{hidden=0.3}", output=folder, allow=["prune"])
    states = Model.load(folder).graph.outputs[0]
    assert states.name == "encoder/last_hidden_state"
    assert states.shape is not None
    assert states.shape[2] == 40
    assert text(name, folder).shape == text(name, sequence_folders[name]).shape
