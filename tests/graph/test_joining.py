"""Parts in one graph: names, weights stored once, apart again, and the same text from the files written."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from sequence_models import LAYERS, NAMES, SEQ2SEQ, saved, text

from graphcompress.errors import UnsupportedModelError
from graphcompress.files.stored import digest_of
from graphcompress.graph.model import Model


def dims(values: Iterable[onnx.ValueInfoProto]) -> list[tuple[str, list[int | str]]]:
    return [
        (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
        for value in values
    ]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_come_back_write_the_same_text(name: str, sequence_folders, tmp_path) -> None:
    folder = sequence_folders[name]
    again = saved(Model.load(folder), tmp_path / "again")
    assert np.array_equal(text(name, again), text(name, folder))


@pytest.mark.parametrize("name", NAMES)
def test_files_come_back_with_their_names_inputs_and_outputs(name: str, sequence_folders, tmp_path) -> None:
    folder = sequence_folders[name]
    again = saved(Model.load(folder), tmp_path / "again")
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.onnx"))
    assert sorted(file.relative_to(again) for file in again.rglob("*.onnx")) == files
    for file in files:
        before, after = onnx.load(folder / file, load_external_data=False), onnx.load(again / file)
        onnx.checker.check_model(after)
        assert dims(after.graph.input) == dims(before.graph.input)
        assert dims(after.graph.output) == dims(before.graph.output)


def test_names_of_a_part_begin_with_what_it_does(sequence_folders) -> None:
    model = Model.load(sequence_folders["marian"])
    assert [(part.role, part.prefix) for part in model.parts] == [
        ("encoder", "encoder/"),
        ("decoder", "prefill/"),
        ("decoder_with_past", "step/"),
    ]
    assert [value.name for value in model.graph.inputs][:3] == [
        "encoder/input_ids",
        "encoder/attention_mask",
        "prefill/encoder_attention_mask",
    ]
    assert str(model.graph.inputs[0].shape[1]) == "encoder_encoder_sequence_length"


def test_one_file_keeps_its_names(sequence_folders) -> None:
    model = Model.load(sequence_folders["llama"] / "model.onnx")
    assert [part.prefix for part in model.parts] == [""]
    assert model.graph.inputs[0].name == "input_ids"


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_weight_of_several_files_is_one_in_the_graph(name: str, sequence_folders) -> None:
    folder = sequence_folders[name]
    distinct = sum(array.nbytes for array in large_weights(folder).values())
    stored = [v.const_value for v in Model.load(folder).graph.initializers.values()]
    assert sum(tensor.nbytes for tensor in stored if tensor.nbytes >= LARGE) == distinct


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_a_weight_of_several_files_is_one_on_disk(name: str, sequence_folders, tmp_path) -> None:
    folder = sequence_folders[name]
    again = saved(Model.load(folder), tmp_path / "again")
    inside = sum(len(raw) for raw in stored_inside(again))
    distinct = sum(array.nbytes for array in large_weights(folder).values())
    assert inside + (again / "shared.onnx_data").stat().st_size <= 1.02 * distinct


LARGE = 1024
"""Bytes from which weights are shared."""


def large_weights(folder: Path) -> dict[tuple[object, ...], np.ndarray]:
    """The distinct weights of the files of at least so many bytes."""
    tensors = [tensor for file in folder.glob("*.onnx") for tensor in onnx.load(file).graph.initializer]
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
    return {(array.shape, array.tobytes()): array for array in arrays if array.nbytes >= LARGE}


def stored_inside(folder: Path) -> list[bytes]:
    """The large weights that lie in the ONNX files themselves."""
    files = [onnx.load(file, load_external_data=False) for file in folder.glob("*.onnx")]
    raws = [tensor.raw_data for file in files for tensor in file.graph.initializer]
    return [raw for raw in raws if len(raw) >= LARGE]


def test_a_merged_decoder_is_two_parts_of_one_file(sequence_folders) -> None:
    model = Model.load(sequence_folders["t5, merged"])
    assert [part.path.name for part in model.parts[1:]] == 2 * ["decoder_model_merged.onnx"]
    assert len([v for v in model.graph.outputs if "encoder.key" in v.name]) == LAYERS


def test_parts_of_different_opsets_are_refused(sequence_folders, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sequence_folders["t5"], folder)
    encoder = onnx.load(folder / "encoder_model.onnx")
    encoder.opset_import[0].version = 16
    onnx.save(encoder, folder / "encoder_model.onnx")
    with pytest.raises(
        UnsupportedModelError, match=r"opset 17, encoder_model.onnx in 16; export all parts in one"
    ):
        Model.load(folder)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4)])
def test_a_digest_is_that_of_the_bytes_however_they_lie(shape: tuple[int, ...]) -> None:
    tensor = ir.tensor(np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape).T)
    assert digest_of(tensor) == hashlib.sha256(tensor.tobytes()).digest()
