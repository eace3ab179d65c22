"""Parts: roles by what files read and return, what they hand on, and files that are no model together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphcompress.errors import InvalidModelError
from graphcompress.files.parts import links, read_parts

Shapes = Mapping[str, tuple[int | str, ...]]
Interface = tuple[Shapes, Shapes]

PAST, PRESENT = "past_key_values.0", "present.0"
HEADS = ("b", 2, "p", 4)
ENCODER: Interface = (
    {"input_ids": ("b", "s"), "attention_mask": ("b", "s")},
    {"last_hidden_state": ("b", "s", 8)},
)
DECODER: Interface = (
    {"encoder_attention_mask": ("b", "s"), "input_ids": ("b", "t"), "encoder_hidden_states": ("b", "s", 8)},
    {"logits": ("b", "t", 9), f"{PRESENT}.decoder.key": HEADS, f"{PRESENT}.encoder.key": HEADS},
)
STEP: Interface = (
    {
        "encoder_attention_mask": ("b", "s"),
        "input_ids": ("b", 1),
        f"{PAST}.decoder.key": HEADS,
        f"{PAST}.encoder.key": HEADS,
    },
    {"logits": ("b", 1, 9), f"{PRESENT}.decoder.key": HEADS},
)
MERGED: Interface = ({**DECODER[0], **STEP[0], "use_cache_branch": (1,)}, DECODER[1])
CAUSAL: Interface = (
    {
        "input_ids": ("b", "t"),
        "attention_mask": ("b", "q"),
        "position_ids": ("b", "t"),
        f"{PAST}.key": HEADS,
        f"{PAST}.value": HEADS,
    },
    {"logits": ("b", "t", 9), f"{PRESENT}.key": HEADS, f"{PRESENT}.value": HEADS},
)
CLASSIFIER: Interface = (ENCODER[0], {"logits": ("b", 2)})


def values(shapes: Shapes) -> list[onnx.ValueInfoProto]:
    def dtype(name: str) -> int:
        return TensorProto.INT64 if "ids" in name or "mask" in name else TensorProto.FLOAT

    return [helper.make_tensor_value_info(name, dtype(name), shape) for name, shape in shapes.items()]


def folder_of(folder: Path, **files: Interface) -> Path:
    """``folder`` with a file for each interface; the graphs have no node."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (inputs, outputs) in files.items():
        graph = helper.make_graph([], "g", values(inputs), values(outputs))
        onnx.save(helper.make_model(graph), folder / f"{name}.onnx")
    return folder


def roles(folder: Path) -> dict[str, str]:
    return {part.path.name: part.role for part in read_parts(folder)}


# ---- roles


def test_the_files_of_optimum_in_the_order_in_which_they_run(tmp_path) -> None:
    files = {"encoder_model": ENCODER, "decoder_with_past_model": STEP, "decoder_model": DECODER}
    assert list(roles(folder_of(tmp_path, **files)).items()) == [
        ("encoder_model.onnx", "encoder"),
        ("decoder_model.onnx", "decoder"),
        ("decoder_with_past_model.onnx", "decoder_with_past"),
    ]


def test_roles_are_found_without_names(tmp_path) -> None:
    assert roles(folder_of(tmp_path, a=STEP, b=ENCODER, c=DECODER)) == {
        "a.onnx": "decoder_with_past",
        "b.onnx": "encoder",
        "c.onnx": "decoder",
    }


def test_the_subfolder_of_transformers_js_without_its_other_data_types(tmp_path) -> None:
    files = {"encoder_model": ENCODER, "decoder_model_merged": MERGED, "decoder_model_merged_fp16": MERGED}
    folder_of(tmp_path / "onnx", **files)
    assert roles(tmp_path) == {"encoder_model.onnx": "encoder", "decoder_model_merged.onnx": "decoder_merged"}


def test_one_file_that_reads_what_it_returned_is_one_part(tmp_path) -> None:
    (part,) = read_parts(folder_of(tmp_path, model=CAUSAL) / "model.onnx")
    assert part.role == "decoder_with_past"
    assert part.past == ((f"{PAST}.key", f"{PRESENT}.key"), (f"{PAST}.value", f"{PRESENT}.value"))
    names = part.input("ids"), part.input("mask"), part.input("positions"), part.output("logits")
    assert names == ("input_ids", "attention_mask", "position_ids", "logits")
    (key, _) = part.reads("past")
    assert (key.dtype, key.shape) == (np.float32, HEADS)


def test_an_ordinary_model_has_no_parts(tmp_path) -> None:
    assert read_parts(folder_of(tmp_path, model=CLASSIFIER)) == ()


def test_one_part_given_by_itself_is_an_ordinary_model(tmp_path) -> None:
    folder = folder_of(tmp_path, encoder_model=ENCODER, decoder_model=DECODER)
    assert [read_parts(file) for file in sorted(folder.iterdir())] == [(), ()]


# ---- what they hand on


def test_states_and_caches_are_handed_to_all_that_read_them(tmp_path) -> None:
    parts = read_parts(folder_of(tmp_path, a=ENCODER, b=DECODER, c=STEP))
    found = {
        (link.source[0].role, link.source[1], link.target[0].role, link.target[1]) for link in links(parts)
    }
    key, step = f"{PAST}.decoder.key", "decoder_with_past"
    assert found == {
        ("encoder", "last_hidden_state", "decoder", "encoder_hidden_states"),
        ("decoder", f"{PRESENT}.decoder.key", step, key),
        ("decoder", f"{PRESENT}.encoder.key", step, f"{PAST}.encoder.key"),
        (step, f"{PRESENT}.decoder.key", step, key),
    }


def test_keys_of_the_encoder_stay_from_step_to_step(tmp_path) -> None:
    parts = read_parts(folder_of(tmp_path, encoder_model=ENCODER, decoder_model_merged=MERGED))
    assert parts[1].past == ((f"{PAST}.decoder.key", f"{PRESENT}.decoder.key"),)


# ---- files that are no model together

OTHER_SIZE: Interface = (ENCODER[0], {"last_hidden_state": ("b", "s", 16)})
OTHER_VOCABULARY: Interface = (STEP[0], {**STEP[1], "logits": ("b", 1, 11)})
NOTHING_RETURNED: Interface = (STEP[0], {"logits": ("b", 1, 9)})

WRONG = {
    "no ONNX file in this folder": {},
    "an encoder without a decoder beside it": {"encoder_model": ENCODER, "other": CLASSIFIER},
    "no encoder lies beside it": {"decoder_model": DECODER},
    "a merged decoder beside decoder_model.onnx": {
        "encoder_model": ENCODER,
        "decoder_model": DECODER,
        "decoder_model_merged": MERGED,
    },
    "what a.onnx does .encoder.; keep one of the two": {"a": ENCODER, "b": ENCODER, "c": DECODER},
    "no part returns what its input 'past_key_values.0.decoder.key' reads": {
        "encoder_model": ENCODER,
        "decoder_with_past_model": NOTHING_RETURNED,
    },
    "reads 'past_key_values.0.encoder.key', which only a first pass returns; put decoder_model.onnx": {
        "encoder_model": ENCODER,
        "decoder_with_past_model": STEP,
    },
    "the files are parts of different models": {"encoder_model": OTHER_SIZE, "decoder_model": DECODER},
    "scores 11 tokens, decoder_model.onnx beside it 9; the files are parts of different models": {
        "encoder_model": ENCODER,
        "decoder_model": DECODER,
        "decoder_with_past_model": OTHER_VOCABULARY,
    },
    "the two are parts of different models": {"encoder_model": ENCODER, "decoder_model": CAUSAL},
}


@pytest.mark.parametrize("said", WRONG)
def test_files_that_are_no_model_together_are_refused_in_one_sentence(said: str, tmp_path) -> None:
    with pytest.raises(InvalidModelError, match=said):
        read_parts(folder_of(tmp_path, **WRONG[said]))
