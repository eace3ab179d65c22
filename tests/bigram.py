"""Tiny models that write, as files: the next token is a function of the last, so what they say is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, pre_tokenizers, processors

WORDS = (
    "<pad>",
    "</s>",
    "ein",
    "mann",
    "sitzt",
    "auf",
    "der",
    "bank",
    "a",
    "man",
    "sits",
    "on",
    "the",
    "bench",
)
PADDING, END = 0, 1
NEXT = {PADDING: 2, **{word: word + 1 for word in range(2, 7)}, 7: END, END: END, 8: 9, 9: 10, 10: 11, 11: 12}
"""Token → the one that a bigram writes after it; 12 goes on with 13, and that with the end."""


def table(size: int = len(WORDS)) -> np.ndarray:
    """Logits [token, next token]: 5 for the one of NEXT, and a little for its neighbours."""
    rng = np.random.default_rng(0)
    found = rng.uniform(0, 1, (size, size)).astype(np.float32)
    for token in range(size):
        found[token, NEXT.get(token, token + 1 if token + 1 < size else END)] = 5
    return found


def tokenizer(words: tuple[str, ...] = WORDS, *, end: bool = False) -> tokenizers.Tokenizer:
    """Words of WORDS by spaces; with ``end`` a text ends in the token for that."""
    made = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.WordPiece(prefix="##")
    made.add_special_tokens(["<pad>", "</s>"])
    if end:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return made


def decoder_alone(folder: Path, **settings: object) -> Path:
    """A folder with model.onnx (token ids → logits, without past), tokenizer and settings."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"])]
    graph = helper.make_graph(
        nodes,
        "bigram",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", len(WORDS)])],
        [numpy_helper.from_array(table(), "table")],
    )
    _save(graph, folder / "model.onnx")
    _settle(folder, {"eos_token_id": END, "pad_token_id": PADDING, **settings}, end=False)
    return folder


def encoder_decoder(folder: Path, positions: int = 16, **settings: object) -> Path:
    """A folder with an encoder of ``positions`` and a decoder that starts with the padding."""
    states = helper.make_graph(
        [
            helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
            helper.make_node("Squeeze", ["length"], ["count"]),
            helper.make_node("Range", ["zero", "count", "one"], ["places"]),
            helper.make_node("Gather", ["positions", "places"], ["placed"]),
            helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
            helper.make_node("Add", ["embedded", "placed"], ["last_hidden_state"]),
        ],
        "encoder",
        [_ids("input_ids"), _ids("attention_mask")],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", 4])],
        [
            numpy_helper.from_array(np.ones((len(WORDS), 4), np.float32), "embedding"),
            numpy_helper.from_array(np.ones((positions, 4), np.float32), "positions"),
            *(
                numpy_helper.from_array(np.asarray(n, np.int64), name)
                for n, name in ((0, "zero"), (1, "one"))
            ),
        ],
    )
    logits = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["own"]),
            helper.make_node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "nothing"], ["zeros"]),
            helper.make_node("Add", ["own", "zeros"], ["logits"]),
        ],
        "decoder",
        [
            _ids("input_ids"),
            helper.make_tensor_value_info("encoder_hidden_states", TensorProto.FLOAT, ["batch", "source", 4]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", len(WORDS)])],
        [
            numpy_helper.from_array(table(), "table"),
            numpy_helper.from_array(np.asarray([1, 2], np.int64), "axes"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
        ],
    )
    _save(states, folder / "encoder_model.onnx")
    _save(logits, folder / "decoder_model.onnx")
    start = {"decoder_start_token_id": PADDING, "eos_token_id": END, "pad_token_id": PADDING}
    _settle(folder, {**start, **settings}, end=True)
    return folder


def _ids(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])


def _save(graph: onnx.GraphProto, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _settle(folder: Path, settings: dict[str, object], *, end: bool) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer(end=end).save(str(folder / "tokenizer.json"))
