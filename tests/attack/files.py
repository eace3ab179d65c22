"""Hostile files: models, data, tokenizers and what artifacts are read back from, damaged in every way."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import tokenizers
from bert import Bert
from onnx import TensorProto, helper, numpy_helper

from attack import read_back
from attack.damage import TEXTS, flipped
from attack.read_back import OPTIMIZE, Attack

KINDS = ("cut", "flip", "flip", "splice", "field", "field", "data", "tokenizer", *read_back.KINDS)
"""Each as often as it stands here."""

ESCAPE = TEXTS[1]


def attacks(seed: int) -> Iterator[tuple[str, Attack]]:
    """Kind and number, and attack, without end: whatever is random comes from ``seed``."""
    rng = random.Random(seed)
    yield from _named()
    while True:
        number = rng.getrandbits(32)
        kind = rng.choice(KINDS)
        yield f"{kind} {number}", hostile(kind, number)


def _model() -> onnx.ModelProto:
    return Bert(layers=1).model()


def _named() -> Iterator[tuple[str, Attack]]:
    for name, change in _CHANGES.items():
        yield name, _changed(change)
    for name, content in _DATA.items():
        yield f"data {name}", _with_data(name, content)
    for name, tokenizer in _TOKENIZERS.items():
        yield f"tokenizer {name}", _with_tokenizer(tokenizer)


def _changed(change: Callable[[onnx.ModelProto], onnx.ModelProto | None]) -> Attack:
    def attack(folder: Path) -> list[str]:
        model = _model()
        other = change(model)
        (folder / "model.onnx").write_bytes((other or model).SerializeToString())
        return OPTIMIZE

    return attack


def _with_data(name: str, content: bytes) -> Attack:
    def attack(folder: Path) -> list[str]:
        (folder / "model.onnx").write_bytes(_model().SerializeToString())
        (folder / name).write_bytes(content)
        _write_tokenizer(folder / "tokenizer.json")
        return [*OPTIMIZE, "--data", name]

    return attack


def _with_tokenizer(tokenizer: dict[str, object]) -> Attack:
    def attack(folder: Path) -> list[str]:
        (folder / "model.onnx").write_bytes(_model().SerializeToString())
        (folder / "d.jsonl").write_text(json.dumps({"text": "a" * 40 + "!"}) + "\n")
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        return [*OPTIMIZE, "--data", "d.jsonl"]

    return attack


def _write_tokenizer(path: Path) -> None:
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(100)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(path))


# ---- models


def _names(model: onnx.ModelProto) -> None:
    """Names of nodes and weights that would move the cursor of a terminal."""
    for node in model.graph.node:
        node.name = ESCAPE + node.name
    for tensor in model.graph.initializer:
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[index] = ESCAPE + name
        tensor.name = ESCAPE + tensor.name


def _odd_sizes(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = ESCAPE + dim.dim_param + " ** 99999999"


def _brackets(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "(" * 5000


def _huge_input(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = 2**40


def _huge_constant(model: onnx.ModelProto) -> onnx.ModelProto:
    shape = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("Add", ["big", "x"], ["y"]),
    ]
    return _small(nodes, [shape])


def _small(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], functions: object = ()
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)


def _doubling(model: onnx.ModelProto) -> onnx.ModelProto:
    """24 functions that call the one before them twice: 16 million nodes in all."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Tanh", ["a"], ["b"])], opsets)
    ]
    for number in range(1, 25):
        calls = [
            helper.make_node(f"f{number - 1}", [a], [b], domain="own") for a, b in (("a", "m"), ("m", "b"))
        ]
        functions.append(helper.make_function("own", f"f{number}", ["a"], ["b"], calls, opsets))
    return _small([helper.make_node("f24", ["x"], ["y"], domain="own")], [], functions)


def _calls_itself(model: onnx.ModelProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    body = [helper.make_node("f", ["a"], ["b"], domain="own")]
    function = helper.make_function("own", "f", ["a"], ["b"], body, opsets)
    return _small([helper.make_node("f", ["x"], ["y"], domain="own")], [], [function])


def _deep(model: onnx.ModelProto) -> onnx.ModelProto:
    """20 branches, each inside the one before."""
    inner = helper.make_node("Tanh", ["x"], ["y0"])
    for number in range(20):
        value = helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None)
        graph = helper.make_graph([inner], f"g{number}", [], [value])
        other = helper.make_graph(
            [helper.make_node("Neg", ["x"], [f"n{number}"])], "e", [],
            [helper.make_tensor_value_info(f"n{number}", TensorProto.FLOAT, None)],
        )  # fmt: skip
        name = "y" if number == 19 else f"y{number + 1}"
        inner = helper.make_node("If", ["flag"], [name], then_branch=graph, else_branch=other)
    return _small([inner], [numpy_helper.from_array(np.array(True), "flag")])


def _long(model: onnx.ModelProto) -> onnx.ModelProto:
    names = ["x", *(f"v{number}" for number in range(699)), "y"]
    nodes = [helper.make_node("Mul", [a, a], [b]) for a, b in itertools.pairwise(names)]
    return _small(nodes, [])


_CHANGES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]] = {
    "names": _names,
    "sizes with escapes": _odd_sizes,
    "brackets": _brackets,
    "huge input": _huge_input,
    "huge constant": _huge_constant,
    "doubling functions": _doubling,
    "a function that calls itself": _calls_itself,
    "deep branches": _deep,
    "700 Mul": _long,
}

_DATA: dict[str, bytes] = {
    "a.jsonl": b'{"text": "w1"}\n{"text"',
    "b.jsonl": b"\xff\xfe\x00\x01" * 9,
    "c.jsonl": b"[" * 100_000,
    "d.jsonl": b'{"text": "' + b"w1 " * 200_000 + b'"}\n',
    "e.jsonl": b'{"text": "\\u001b[31m"}\n',
    "f.jsonl": b"null\n3\n[]\n",
    "g.jsonl": b'{"input_ids": [1e999], "attention_mask": [NaN], "token_type_ids": [0]}\n',
    "h.jsonl": b'{"input_ids": {}, "attention_mask": [], "token_type_ids": [[]]}\n',
    "i.jsonl": b'{"input_ids": [], "attention_mask": [], "token_type_ids": []}\n',
    "j.csv": b'text\n"open',
    "k.csv": b"text\n" + b"x" * 200_000 + b"\n",
    "l.csv": b"\x00\n\x00\n",
    "m.tsv": b"text\tother\nw1\n",
    "n.npz": b"PK\x03\x04" + bytes(200),
    "o.npz": b"",
    "p.parquet": b"PAR1" + bytes(100) + b"PAR1",
    "q.jsonl.gz": b"\x1f\x8b\x08" + bytes(50),
    "r.jsonl": b'{"input_ids": [9999999999999999999], "attention_mask": [1], "token_type_ids": [0]}\n',
    "s.jsonl": b'{"input_ids": [' + b"1," * 50_000 + b"1]}\n",
    "t.jsonl": b'{"text": ["w1", "w2"]}\n',
    "u.jsonl": b'{"text": ""}\n',
}

_WORDS = {f"w{index}": index for index in range(100)}
_PLAIN: dict[str, object] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": _WORDS, "unk_token": "w0"},
}  # fmt: skip
_SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
_TOKENIZERS: dict[str, dict[str, object]] = {
    "whose library panics": {**_PLAIN, "pre_tokenizer": _SPLIT},
    "without a vocabulary": {**_PLAIN, "model": {"type": "WordLevel", "vocab": {}, "unk_token": "w0"}},
    "without an unknown token": {
        **_PLAIN,
        "model": {"type": "WordLevel", "vocab": _WORDS, "unk_token": "nobody"},
    },
    "of another version": {**_PLAIN, "version": "9.9"},
    "of wrong types": {**_PLAIN, "added_tokens": 3},
    "with a broken expression": {**_PLAIN, "pre_tokenizer": {**_SPLIT, "pattern": {"Regex": "((("}}},
    "with huge ids": {**_PLAIN, "model": {"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}},
}


# ---- at random


def hostile(kind: str, number: int) -> Attack:
    def attack(folder: Path) -> list[str]:
        rng = random.Random(number)
        content = _model().SerializeToString()
        arguments = OPTIMIZE
        if kind == "cut":
            content = content[: rng.randrange(len(content))]
        elif kind == "flip":
            content = flipped(content, rng, rng.choice([1, 3, 30]))
        elif kind == "splice":
            begin, end = sorted(rng.randrange(len(content)) for _ in range(2))
            content = content[:begin] + rng.randbytes(rng.randrange(64)) + content[end:]
        elif kind == "field":
            content = _one_field(onnx.load_from_string(content), rng).SerializeToString()
        elif kind == "data":
            name, data = rng.choice(sorted(_DATA.items()))
            (folder / name).write_bytes(flipped(data, rng, 5) if data else rng.randbytes(20))
            arguments = [*OPTIMIZE, "--data", name]
            _write_tokenizer(folder / "tokenizer.json")
        elif kind == "tokenizer":
            text = json.dumps(rng.choice(list(_TOKENIZERS.values()))).encode()
            (folder / "tokenizer.json").write_bytes(flipped(text, rng, 3))
            (folder / "d.jsonl").write_text('{"text": "w1 w2"}\n')
            arguments = [*OPTIMIZE, "--data", "d.jsonl"]
        else:
            arguments = read_back.KINDS[kind](folder, rng)
        (folder / "model.onnx").write_bytes(content)
        return arguments

    return attack


def _one_field(model: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """One field of one message somewhere in the model has another value."""
    for _ in range(100):
        message = model
        while True:
            fields = [(field, value) for field, value in message.ListFields() if field.name != "raw_data"]
            if not fields:
                break
            field, value = rng.choice(fields)
            repeated = not isinstance(value, str | bytes | int | float) and hasattr(value, "__len__")
            if field.message_type is not None:
                message = rng.choice(list(value)) if repeated else value
                if rng.random() < 0.8:
                    continue
                message.Clear()
                return model
            new = (
                rng.choice(TEXTS)
                if field.cpp_type == field.CPPTYPE_STRING
                else rng.choice([0, -1, 1, 7, 2**31 - 1])
            )
            new = new.encode() if field.type == field.TYPE_BYTES and isinstance(new, str) else new
            try:
                if repeated:
                    value[rng.randrange(len(value))] = new
                else:
                    setattr(message, field.name, new)
            except (ValueError, TypeError):
                break
            return model
    return model
