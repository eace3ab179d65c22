"""Positions beyond a promised length, and outputs that nobody asks for, are dropped; the rest stays equal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import sequence_models
from bert import Bert
from conftest import random_samples
from simplified_models import model_of, normal
from tokenizers import Tokenizer, models

from graphcompress.build.optimize import optimize
from graphcompress.build.questions import verify
from graphcompress.data.lengths import longest_sample
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.agreements import agreed_length, left_out
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context

TABLES = {
    "table": normal(32, 4),
    "causal": np.tril(np.ones((1, 32, 32), np.float32)),
    "listed": np.arange(32),
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "zeros": np.array([0]),
    "first": np.array([1]),
    "last": np.array([2]),
    "minus": np.array([-1]),
}
LENGTH = """
    sizes = Shape(input_ids)
    length = Gather(sizes, one)
    end = Unsqueeze(length, zeros)
"""
COUNTED = "count = Range(zero, length, one)"
GRAPHS = {
    "counted": (f"{COUNTED} y = Gather(table, count)", {"table": [8, 4]}),
    "counted from two on": (f"{COUNTED} c = Add(count, two) y = Gather(table, c)", {"table": [10, 4]}),
    "a slice of a list": (
        "some = Slice(listed, zeros, end, zeros) y = Gather(table, some)",
        {"table": [8, 4], "listed": [8]},
    ),
    "slices one behind another": (
        "rows = Slice(causal, zeros, end, first) y = Slice(rows, zeros, end, last)",
        {"causal": [1, 8, 8]},
    ),
    "distances": (
        f"{COUNTED} a = Unsqueeze(count, zeros) b = Unsqueeze(count, first) d = Sub(a, b) e = Abs(d)"
        " y = Gather(table, e)",
        {"table": [8, 4]},
    ),
    "running sums of what is no padding": (
        "p = Equal(input_ids, zero) q = Not(p) r = Cast <to = 7> (q) s = CumSum(r, one) t = Mul(s, r)"
        " u = Add(t, one) y = Gather(table, u)",
        {"table": [10, 4]},
    ),
    "running sums less one, from two on, as OPT has them": (
        "p = Equal(input_ids, zero) q = Not(p) r = Cast <to = 7> (q) s = CumSum(r, one) t = Mul(s, r)"
        " u = Sub(t, one) v = Add(u, two) y = Gather(table, v)",
        {"table": [10, 4]},
    ),
    "counted from the end": ("y = Slice(table, minus, end, zeros)", {"table": [32, 4]}),
    "a whole table besides": (
        f"{COUNTED} a = Gather(table, count) b = Gather(table, input_ids) y = Add(a, b)",
        {"table": [32, 4]},
    ),
    "whatever a caller gives": ("y = Gather(table, input_ids)", {"table": [32, 4]}),
}


def model_with(body: str) -> Model:
    words = set(re.findall(r"\w+", LENGTH + body))
    rank = "a, b, c" if re.search("causal|Abs|CumSum|table, input_ids", body) else "a, b"
    text = f"g (int64[batch, sequence] input_ids) => (float[{rank}] y) {{ {LENGTH} {body} }}"
    return model_of(text, **{name: array for name, array in TABLES.items() if name in words})


def sizes(model: Model, name: str) -> list[int]:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return list(tensor.shape.numpy())


@pytest.mark.parametrize("form", GRAPHS)
def test_what_no_position_reaches_is_gone_and_the_rest_is_equal(form: str) -> None:
    body, left = GRAPHS[form]
    model = model_with(body)
    whole = model.clone()
    Simplify(max_length=8).run(model, Context())
    with Runner(whole) as before, Runner(model) as after:
        for length in (1, 7, 8):
            ids = np.arange(2 * length).reshape(2, length)
            np.testing.assert_array_equal(after({"input_ids": ids})["y"], before({"input_ids": ids})["y"])
    assert {name: sizes(model, name) for name in left} == left
    assert agreed_length(model) == longest_sample(model) == 8
    assert Simplify(max_length=8).run(model, Context()).touched == ()


@pytest.mark.parametrize("name", ["marian", "whisper", "gpt2", "t5, merged"])
def test_models_that_write_give_equal_tokens_within_the_length(
    name: str, sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    before = model.parameters
    Simplify(max_length=20).run(model, Context())
    folder = sequence_models.saved(model, tmp_path / "out")
    for file in sequence_folders[name].glob("*.json"):
        shutil.copy(file, folder)
    given, whole = sequence_models.text(name, folder), sequence_models.text(name, sequence_folders[name])
    np.testing.assert_array_equal(given, whole)
    assert agreed_length(Model.load(folder)) == 20
    assert model.parameters < before


HALF = """
    count = Range(zero, length, one) a = Unsqueeze(count, zeros) b = Unsqueeze(count, first) d = Sub(a, b)
"""
LARGE = """
    f = Cast <to = 1> (m) g = Div(f, near) h = Log(g) i = Div(h, span) j = Mul(i, near) k = Cast <to = 7> (j)
    l = Add(k, four) n = Min(l, last_one) o = Less(m, four) p = Where(o, m, n)
"""
"""Of distances m up to 3 the bucket is m itself, of larger ones that of their logarithm, up to 7 at 32."""
BUCKETS = {
    "both sides": (
        f"{HALF} m = Abs(d) {LARGE} q = Greater(d, zero) r = Cast <to = 7> (q) s = Mul(r, eight)"
        " t = Add(s, p) y = Gather(table, t)"
    ),
    "one side": f"{HALF} q = Min(d, zero) m = Neg(q) {LARGE} y = Gather(table, p)",
}


@pytest.mark.parametrize(
    ("form", "length", "rows"),
    [
        ("both sides", 4, [0, 1, 2, 3, 9, 10, 11]),
        ("both sides", 9, [0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13]),
        ("both sides", 40, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]),
        ("one side", 4, [0, 1, 2, 3]),
        ("one side", 9, [0, 1, 2, 3, 4, 5]),
        ("one side", 40, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_buckets_that_no_distance_falls_into_are_gone(form: str, length: int, rows: list[int]) -> None:
    numbers = {"four": np.array(4), "eight": np.array(8), "last_one": np.array(7)}
    scales = {"near": np.array(4, np.float32), "span": np.array(np.log(8), np.float32)}
    tables = {"table": normal(16, 3), **{name: TABLES[name] for name in ("zero", "one", "zeros", "first")}}
    text = f"g (int64[batch, sequence] input_ids) => (float[a, b, c] y) {{ {LENGTH} {BUCKETS[form]} }}"
    model = model_of(text, **numbers, **scales, **tables)
    whole = model.clone()
    record = Simplify(max_length=length).run(model, Context())
    with Runner(whole) as before, Runner(model) as after:
        for count in range(1, length + 1):
            ids = {"input_ids": np.zeros((1, count), np.int64)}
            np.testing.assert_array_equal(after(ids)["y"], before(ids)["y"])
    left = model.graph.initializers["table"].const_value
    assert left is not None
    assert {tuple(row) for row in left.numpy()} >= {tuple(tables["table"][row]) for row in rows}
    assert len(left.numpy()) <= len(rows) + 1  # where a logarithm comes near a whole number
    assert f"{len(left.numpy())} of 16 buckets of distances are left" in record.touched[-1].detail
    assert np.array_equal(left.numpy(), tables["table"][model.kept["table"][0]])
    assert Simplify(max_length=length).run(model, Context()).touched == ()


def test_distances_that_are_read_up_to_the_end_lose_their_front() -> None:
    """As MPT reads those of ALiBi: the last ones, as many as there are tokens."""
    body = "m = Neg(length) s = Add(all, m) t = Max(s, zero) u = Unsqueeze(t, zeros)"
    body += " y = Slice(table, u, far, zeros)"
    names = ("table", "zero", "one", "zeros")
    text = f"g (int64[batch, sequence] input_ids) => (float[a, b] y) {{ {LENGTH} {body} }}"
    given = {name: TABLES[name] for name in names}
    model = model_of(text, **given, all=np.array(32), far=np.array([2**63 - 1]))
    whole = model.clone()
    Simplify(max_length=8).run(model, Context())
    np.testing.assert_array_equal(model.graph.initializers["table"].const_value, TABLES["table"][-8:])
    with Runner(whole) as before, Runner(model) as after:
        for length in range(1, 9):
            ids = {"input_ids": np.zeros((1, length), np.int64)}
            np.testing.assert_array_equal(after(ids)["y"], before(ids)["y"])
    assert Simplify(max_length=8).run(model, Context()).touched == ()


def test_a_length_that_drops_nothing_is_told() -> None:
    """As of BLOOM, which computes its distances."""
    model = model_with("count = Range(zero, length, one) c = Cast <to = 1> (count) y = Unsqueeze(c, zeros)")
    record = Simplify(max_length=8).run(model, Context())
    assert "max_length drops nothing: no table, mask or list of more positions is stored" in record.notes


@pytest.fixture
def with_tokenizer(tmp_path: Path) -> Path:
    """The small BERT, of 64 positions, with a tokenizer and texts of up to 40 tokens beside it."""
    onnx.save(Bert().model(), tmp_path / "model.onnx")
    words = [f"w{number}" for number in range(99)]
    tokenizer = Tokenizer(
        models.WordLevel({"[UNK]": 99, **{word: n for n, word in enumerate(words)}}, "[UNK]")
    )
    tokenizer.pre_tokenizer = __import__("tokenizers").pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64}))
    texts = [" ".join(words[start : start + 4 * start + 4]) for start in range(1, 10)]
    rows = (json.dumps({"sentence": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text("".join(rows))
    return tmp_path / "model.onnx"


def test_texts_are_cut_to_the_length_that_the_artifact_names(with_tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = with_tokenizer.parent / "texts.jsonl"
    built = optimize(with_tokenizer, "simplify{max_length=12}", output=out, data=data)
    assert max(len(feed["input_ids"]) for feed in built.samples.feeds) == 12
    assert built.lowered[0].difference.sqnr_db > 100
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 12
    assert agreed_length(Model.load(out / "model.onnx")) == 12
    assert "an input of more than 12 tokens fails" in (out / "report.md").read_text()
    assert verify(with_tokenizer, out).difference.sqnr_db > 100


def test_samples_that_break_the_promise_are_refused(with_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample \d+ has 13 tokens .* max_length=12 promises"):
        optimize(with_tokenizer, "simplify{max_length=12}", output=tmp_path / "o", data=random_samples(10))


def test_outputs_that_nobody_asks_for_go_with_what_only_they_need(tmp_path: Path) -> None:
    proto = Bert().model()
    inner = next(node for node in proto.graph.node if node.op_type == "LayerNormalization").output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(inner, onnx.TensorProto.FLOAT, None))
    kept = proto.graph.output[0].name
    onnx.save(proto, tmp_path / "model.onnx")
    built = optimize(tmp_path / "model.onnx", f"simplify{{outputs={inner}}}", output=tmp_path / "one")
    assert built.lowered[0].size.macs < 0.1 * built.before.macs
    assert left_out(Model.load(tmp_path / "one" / "model.onnx")) == (kept,)
    assert [one.name for one in verify(tmp_path / "model.onnx", tmp_path / "one").difference.outputs] == [
        inner
    ]
    with pytest.raises(UsageError, match="has no output 'logitz': known"):
        optimize(tmp_path / "model.onnx", "simplify{outputs=logitz}", output=tmp_path / "none")


@pytest.mark.parametrize("name", ["marian", "whisper, merged", "gpt2"])
def test_caches_and_hidden_states_of_parts_stay_whatever_is_asked_for(
    name: str, sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    before = [value.name for value in model.graph.outputs]
    Simplify(outputs="logits").run(model, Context())
    assert [value.name for value in model.graph.outputs] == before
    with pytest.raises(UsageError, match="no output 'no'"):
        Simplify(outputs="no").agree(Model.load(sequence_folders[name]))


def test_an_output_of_parts_that_nothing_hands_on_goes_from_all_of_them(
    sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Of a merged decoder, too, whose two branches return the same names."""
    folder = shutil.copytree(sequence_folders["t5, merged"], tmp_path / "given")
    file = folder / "onnx" / "decoder_model_merged.onnx"
    proto = onnx.load(file)
    for attribute in proto.graph.node[0].attribute:
        made = attribute.g.node.add()
        made.CopyFrom(
            onnx.helper.make_node("Identity", [attribute.g.output[0].name], [attribute.name + "_spare"])
        )
        attribute.g.output.append(onnx.helper.make_tensor_value_info(attribute.name + "_spare", 1, None))
    proto.graph.node[0].output.append("spare")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("spare", 1, ["b", "s", "v"]))
    onnx.save(proto, file)
    model = Model.load(folder)
    Simplify(outputs="logits").run(model, Context())
    saved = sequence_models.saved(model, tmp_path / "out")
    names = [value.name for value in onnx.load(saved / "onnx" / file.name).graph.output]
    assert "spare" not in names
    assert "logits" in names
    assert left_out(Model.load(saved)) == ("prefill/spare", "step/spare")
