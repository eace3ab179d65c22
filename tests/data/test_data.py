"""Samples: files become feeds, shorter samples are padded, nothing is mixed up."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import texts
import tokenizers
from bert import Bert
from graphs_past import WITH_PAST
from hypothesis import given
from hypothesis import strategies as st
from texts import model_of

from graphcompress.data.lengths import longest_sample
from graphcompress.data.load import Samples, load_samples
from graphcompress.data.made_up import synthetic_samples
from graphcompress.data.tables import read_columns
from graphcompress.errors import DataError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def numbered(sizes: list[int], **options: object) -> Samples:
    """Sample i holds the number i + 1, ``sizes[i]`` times."""
    feeds = [
        {"ids": np.full(size, index + 1), "mask": np.ones(size, int)} for index, size in enumerate(sizes)
    ]
    return Samples(feeds, {"row": list(range(len(sizes)))}, **options)


@given(lengths, st.integers(1, 5), st.booleans())
def test_batches_hold_every_sample_once_padded_at_the_end(sizes, size, by_length) -> None:
    samples = numbered(sizes, pad={"ids": -7})
    seen = []
    for feed in samples.batches(size, by_length=by_length):
        assert feed["ids"].shape == feed["mask"].shape
        assert len(feed["ids"]) <= size
        for ids, mask in zip(feed["ids"], feed["mask"], strict=True):
            real = int(mask.sum())
            number = int(ids[0])
            assert real == sizes[number - 1]
            assert list(ids[:real]) == [number] * real
            assert set(ids[real:]) <= {-7}
            assert list(mask) == sorted(mask, reverse=True)
            seen.append(number)
    assert sorted(seen) == list(range(1, len(sizes) + 1))


@given(lengths)
def test_order_by_length_is_a_stable_sort(sizes) -> None:
    order = numbered(sizes).order(by_length=True)
    assert order == sorted(range(len(sizes)), key=lambda index: sizes[index])


@given(lengths, st.integers(1, 4))
def test_fixed_sizes_are_filled_up(sizes, batch) -> None:
    fixed = {"ids": (batch, 9), "mask": (batch, 9)}
    for feed in numbered(sizes, fixed=fixed).batches(8):
        assert feed["ids"].shape == (batch, 9)
        assert (feed["mask"].sum(1) > 0).all()


@given(lengths, st.integers(0, 12), st.sampled_from([1, 2]))
def test_first_takes_whole_rows(sizes, count, per_row) -> None:
    samples = Samples([{"x": np.ones(1)}] * (len(sizes) * per_row), {"row": sizes}, per_row=per_row)
    first = samples.first(count)
    assert len(first) == per_row * len(first.columns["row"]) == per_row * min(count, len(sizes))
    assert first.per_row == per_row


# ---- files

ROWS = [{"input_ids": [5] * n, "attention_mask": [1] * n, "token_type_ids": [0] * n} for n in (3, 5, 4)]


def write_rows(path: Path) -> Path:
    text = "".join(json.dumps({**row, "label": len(row["input_ids"])}) + "\n" for row in ROWS)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def write_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    pq.write_table(pa.table({**columns, "label": [3, 5, 4]}), path)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_columns_named_like_inputs_are_used_as_they_are(name, tiny_bert, tmp_path) -> None:
    write = write_parquet if name.endswith("parquet") else write_rows
    samples = load_samples(write(tmp_path / name), tiny_bert)
    assert [feed["input_ids"].shape for feed in samples.feeds] == [(3,), (5,), (4,)]
    assert all(feed["input_ids"].dtype == np.int64 for feed in samples.feeds)
    assert list(samples.columns["label"]) == [3, 5, 4]


def test_arrays_of_an_npz_have_the_batch_in_front(tiny_bert, tmp_path) -> None:
    arrays = {name: np.ones((6, 7), np.int32) for name in ROWS[0]}
    np.savez(tmp_path / "a.npz", **arrays, label=np.arange(6))
    samples = load_samples(tmp_path / "a.npz", tiny_bert, limit=4)
    assert len(samples) == len(samples.columns["label"]) == 4
    assert samples.batch([0, 1])["input_ids"].shape == (2, 7)


def word_tokenizer(path: Path, size: int = 100) -> None:
    vocabulary = {"[PAD]": 3, "[UNK]": 0, "a": 1, "b": 2, **{f"w{index}": index for index in range(4, size)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


TEXTS = {
    "t.csv": 'sentence1,sentence2,score\na b,b,0.5\n"a, a",b b b,1.0\n',
    "t.tsv": 'sentence1\tsentence2\tscore\na b\tb\t0.5\na " a\tb b b\t1.0\n',
    "t.jsonl": '{"sentence1": "a b", "sentence2": "b", "score": 0.5}\n'
    '{"sentence1": "a , a", "sentence2": "b b b", "score": 1.0}\n',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("pair", "expected"), [("joint", [3, 6]), ("separate", [2, 1, 3, 3])])
def test_texts_are_tokenized(name, pair, expected, tiny_bert, tmp_path) -> None:
    (tmp_path / name).write_text(TEXTS[name])
    word_tokenizer(tmp_path / "tokenizer.json")
    samples = load_samples(tmp_path / name, tiny_bert, tokenizer=tmp_path, pair=pair)
    assert [len(feed["input_ids"]) for feed in samples.feeds] == expected
    assert [float(score) for score in samples.columns["score"]] == [0.5, 1.0]
    assert samples.pad == {"input_ids": 3}
    shortest_last = samples.batch(range(len(samples)))
    assert (shortest_last["input_ids"][shortest_last["attention_mask"] == 0] == 3).all()


def test_the_tokenizer_beside_the_model_is_found(tiny_bert_path, tmp_path) -> None:
    (tmp_path / "model.onnx").write_bytes(tiny_bert_path.read_bytes())
    word_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "t.jsonl").write_text('{"text": "a b a"}\n')
    assert len(load_samples(tmp_path / "t.jsonl", Model.load(tmp_path / "model.onnx"))) == 1


def test_texts_are_cut_to_the_positions_that_the_model_has(tiny_bert, tmp_path) -> None:
    word_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a " * 100}) + "\n")
    samples = load_samples(tmp_path / "t.jsonl", tiny_bert, tokenizer=tmp_path)
    assert longest_sample(tiny_bert) == 64
    assert len(samples.feeds[0]["input_ids"]) == 64


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"text": "a " * 100}, None),
        ({"sentence1": "a " * 60, "sentence2": "b " * 40}, None),
        ({"sentence1": "a " * 100, "sentence2": "b"}, "separate"),
        ({"tokens": ["a"] * 100}, None),
    ],
)
@pytest.mark.parametrize(("length", "longest"), [(None, 64), (50, 50)])
def test_texts_that_are_cut_are_counted(row, pair, length, longest, tiny_bert, tmp_path, caplog) -> None:
    word_tokenizer(tmp_path / "tokenizer.json")
    path, short = tmp_path / "t.jsonl", {name: value[:3] for name, value in row.items()}
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, short)))
    load_samples(path, tiny_bert, tokenizer=tmp_path, pair=pair, max_length=length)
    count = 4 if pair == "separate" else 2
    assert f"1 of {count} texts are cut after {longest} tokens; --max-length reads more" in caplog.text


def test_texts_that_fit_are_not_said_to_be_cut(tiny_bert, tmp_path, caplog) -> None:
    word_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a " * 64}) + "\n")
    load_samples(tmp_path / "t.jsonl", tiny_bert, tokenizer=tmp_path)
    assert not caplog.text


POSITIONS = """
g (int64[batch, sequence] ids, int64[sequence] mask, int64[sequence] position_ids,
   float[batch, past] past_key) => (float[sequence, 8] y)
<float[66, 8] table>
{{
  zero = Constant <value = int64 {{0}}> ()
  one = Constant <value = int64 {{1}}> ()
  two = Constant <value = int64 {{2}}> ()
  ones = Constant <value = int64[1] {{1}}> ()
  shape = Shape <start = 1, end = 2> (ids)
  length = Squeeze(shape)
  {positions}
  y = Gather(table, positions)
}}
"""


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("positions = Range(zero, length, one)", 66),
        ("count = Range(zero, length, one) positions = Add(count, two)", 64),
        ("count = Range(zero, length, one) positions = Add(two, count)", 64),
        ("count = Range(zero, length, one) positions = Add(zero, count)", 66),
        ("last = Add(length, two) positions = Range(two, last, one)", 64),
        ("count = Range(zero, length, one) positions = Mul(count, two)", None),
        ("count = Range(zero, length, one) positions = Tile(count, ones)", 66),
        ("positions = CumSum(mask, zero)", 65),
        ("last = CumSum(mask, zero) positions = Sub(last, one)", 66),
        ("sum = CumSum(mask, zero) real = Mul(mask, sum) positions = Add(real, one)", 64),
        ("positions = Identity(position_ids)", 66),
        ("positions = Identity(mask)", None),
        ("all = Shape(past_key) shaped = Gather(all, one) positions = Add(zero, shaped)", 66),
        ("shaped = Shape <start = 1, end = 2> (past_key) positions = Add(shaped, two)", 64),
        ("positions = Sub(shape, one)", 66),
        ("positions = Identity(shape)", 65),
    ],
)
def test_rows_below_the_first_position_are_not_for_tokens(positions, expected) -> None:
    assert longest_sample(model_of(POSITIONS.format(positions=positions))) == expected


@pytest.mark.parametrize(("name", "between"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_a_column_named_twice_is_refused(name, between, tmp_path) -> None:
    lines = [("text", "score", "text"), ("a b", "1", "c d")]
    (tmp_path / name).write_text("".join(between.join(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="the header names column 'text' twice; give each column its own"):
        read_columns(tmp_path / name)


def test_a_row_without_a_token_is_refused(tiny_bert, tmp_path) -> None:
    rows = [*ROWS, {name: [] for name in ROWS[0]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="row 4 is empty: it has no token; remove that row"):
        load_samples(tmp_path / "rows.jsonl", tiny_bert)


# ---- samples without data


def test_synthetic_samples_run(tiny_bert) -> None:
    samples = synthetic_samples(tiny_bert, length=500)
    assert samples.synthetic
    assert max(len(feed["input_ids"]) for feed in samples.feeds) == 64
    with Runner(tiny_bert) as run:
        assert run(samples.batch(range(8)))["last_hidden_state"].shape == (8, 64, 32)


def test_a_model_of_fixed_sizes_gets_samples_of_these_sizes(tmp_path, tiny_bert_proto) -> None:
    proto = Bert().model()
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_value, dims[1].dim_value = 2, 16
    onnx.save(proto, tmp_path / "fixed.onnx")
    model = Model.load(tmp_path / "fixed.onnx")
    samples = load_samples(write_rows(tmp_path / "rows.jsonl"), model)
    with Runner(model) as run:
        shapes = [run(feed)["last_hidden_state"].shape for feed in samples.batches(8)]
    assert shapes == [(2, 16, 32), (2, 16, 32)]


def test_a_sample_longer_than_a_fixed_size_is_refused(tmp_path) -> None:
    proto = Bert().model()
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(proto, tmp_path / "fixed.onnx")
    with pytest.raises(DataError, match=r"row 2 has shape \[5\], input 'input_ids' takes at most 4"):
        load_samples(write_rows(tmp_path / "rows.jsonl"), Model.load(tmp_path / "fixed.onnx"))


@pytest.mark.parametrize("dim", ["8", "n"])
def test_an_input_of_one_axis_gets_a_number_per_sample(dim) -> None:
    model = texts.model_of(f"g (int64[{dim}] ids) => (int64[{dim}] y) {{ y = Add(ids, ids) }}")
    samples = synthetic_samples(model, count=3)
    feed = samples.batch(range(3))
    assert feed["ids"].shape == ((8,) if dim == "8" else (3,))
    assert set(feed["ids"]) <= {int(sample["ids"]) for sample in samples.feeds}
    with Runner(model) as run:
        np.testing.assert_array_equal(run(feed)["y"], 2 * feed["ids"])


ALONE = "alone = Concat <axis = 2> (past_keys)\n  joined = Concat <axis = 2> (past_keys, new)"


@pytest.mark.parametrize("joined", ["joined = Concat <axis = 2> (past_keys, new)", ALONE])
def test_synthetic_masks_reach_over_past_and_new_tokens(joined):
    model = texts.model_of(WITH_PAST.replace("joined = Concat <axis = 2> (past_keys, new)", joined))
    sample = synthetic_samples(model, length=20).feeds[0]
    shapes = {name: array.shape for name, array in sample.items()}
    assert shapes == {"past_keys": (2, 10, 8), "new": (2, 10, 8), "attention_mask": (20,)}
