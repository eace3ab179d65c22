"""vocab drops rows of the word embedding; what the data look up stays exactly as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import random_samples
from tokenizers import Tokenizer, models

from graphcompress.analysis.linears import embeddings
from graphcompress.build.optimize import optimize
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.quantize import quantisable
from graphcompress.passes.vocab.vocab import Vocab
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

TOKENS = ["[PAD]", "[UNK]", "[CLS]", *(f"word{number}" for number in range(97))]


@pytest.fixture
def with_tokenizer(tiny_bert_path: Path, tmp_path: Path) -> Path:
    """The small BERT with a tokenizer of 100 words beside it."""
    words = models.WordPiece({token: index for index, token in enumerate(TOKENS)}, unk_token="[UNK]")
    made = Tokenizer(words)
    made.add_special_tokens(TOKENS[:3])
    folder = tmp_path / "given"
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return Path(shutil.copy(tiny_bert_path, folder))


def below(count: int, ids: int) -> Samples:
    """Samples whose ids are 0 to ``ids``."""
    samples = random_samples(count)
    for sample in samples.feeds:
        sample["input_ids"][:] %= ids
    return samples


def outputs(model: Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    with Runner(model) as run:
        return list(run(feed).values())


def test_answers_on_kept_tokens_are_equal_and_rows_are_gone(with_tokenizer: Path) -> None:
    model, samples = Model.load(with_tokenizer), below(40, 30)
    feed = samples.batch(range(8))
    before = outputs(model, feed)
    (record,) = Pipeline([Vocab()]).run(model, Context(samples=samples), require_coverage=0.0)[-1:]
    for one, other in zip(before, outputs(model, feed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "30 of 100 rows (70.0% fewer)" in [item.detail for item in record.touched]
    assert 30 in {item.rows for item in embeddings(model)}
    assert any("0.00% of" in note for note in record.notes)


def test_a_dropped_id_looks_up_the_unknown_token(with_tokenizer: Path) -> None:
    model, samples = Model.load(with_tokenizer), below(8, 30)
    Vocab().run(model, Context(samples=samples))
    feed = samples.batch(range(2))
    known = outputs(model, {**feed, "input_ids": np.full_like(feed["input_ids"], TOKENS.index("[UNK]"))})
    dropped = outputs(model, {**feed, "input_ids": np.full_like(feed["input_ids"], 77)})
    for one, other in zip(known, dropped, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tokenizer_without_an_unknown_token_or_of_an_unknown_kind_is_told(with_tokenizer: Path) -> None:
    path = with_tokenizer.parent / "tokenizer.json"
    settings = json.loads(path.read_text())
    for changed, said in (
        ({"unk_token": "[NONE]"}, "the tokenizer has no unknown token"),
        ({"type": "Other"}, "no tokenizer.json of a kind that is known lies beside the model"),
    ):
        path.write_text(json.dumps({**settings, "model": {**settings["model"], **changed}}))
        record = Vocab().run(Model.load(with_tokenizer), Context(samples=below(8, 30)))
        assert f"{said}: dropped ids look up the first row" in record.notes


def test_tokens_of_a_file_are_kept(with_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("word5\nword9\nnone\n")
    model = Model.load(with_tokenizer)
    record = Vocab(keep=str(tmp_path / "tokens.txt")).run(model, Context(samples=below(40, 30)))
    assert {0, 1, 2, 8, 12} == model.tokens
    (dropped,) = [note for note in record.notes if note.endswith("tokens of the data are dropped")]
    assert float(dropped.partition("%")[0]) > 50
    (tmp_path / "tokens.txt").write_text("none\n")
    with pytest.raises(DataError, match="none of its 1 lines is a token"):
        Vocab(keep=str(tmp_path / "tokens.txt")).run(Model.load(with_tokenizer), Context())


def test_a_list_says_how_many_of_its_lines_are_no_tokens(with_tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_bytes("\ufeffword5\r\nnone\r\n\r\nword9".encode())
    model = Model.load(with_tokenizer)
    record = Vocab(keep=str(file)).run(model, Context())
    assert {0, 1, 2, 8, 12} == model.tokens
    assert f"1 of 3 lines of {file} are no tokens, such as 'none'" in record.notes
    file.write_bytes(b"\xff\xfew\x00")
    with pytest.raises(DataError, match="a list of tokens is text in UTF-8"):
        Vocab(keep=str(file)).run(Model.load(with_tokenizer), Context())


def test_a_table_in_8_bits_is_left_alone(with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(with_tokenizer)
    samples = below(40, 30)
    monkeypatch.setattr(quantisable, "SMALLEST_TABLE", 1)
    Pipeline.parse("int8").run(model, Context(samples=samples))
    before = {value.name: value.shape for value in model.initializers()}
    record = Vocab().run(model, Context(samples=samples))
    assert not record.touched
    assert model.tokens is None
    assert "put vocab before int8" in record.skipped[0].reason
    assert {value.name: value.shape for value in model.initializers()} == before


def test_without_data_or_file_it_is_refused() -> None:
    with pytest.raises(UsageError, match="give some with --data"):
        Vocab().check_given(calibrated=False)
    with pytest.raises(UsageError, match="there is no file"):
        Vocab(keep="nowhere.txt").check_given(calibrated=True)


def test_a_trial_without_samples_leaves_the_table_alone(with_tokenizer: Path) -> None:
    model = Model.load(with_tokenizer)
    record = Vocab().run(model, Context())
    assert not record.touched
    assert "without samples nothing says which tokens occur" in record.skipped[0].reason


def test_twice_is_once(with_tokenizer: Path) -> None:
    model, samples = Model.load(with_tokenizer), below(8, 30)
    Vocab().run(model, Context(samples=samples))
    assert Vocab().run(model, Context(samples=samples)).touched == ()


def test_the_tokenizer_of_the_artifact_has_the_kept_tokens(with_tokenizer: Path, tmp_path: Path) -> None:
    optimize(with_tokenizer, "vocab", output=tmp_path / "out", data=below(16, 30))
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["model"]["vocab"] == {token: index for index, token in enumerate(TOKENS[:30])}


def test_its_text_makes_it_again() -> None:
    assert Pipeline.parse("vocab{keep=tokens.txt}").passes == (Vocab(keep="tokens.txt"),)


def test_a_recipe_knows_the_list_of_tokens_and_other_tables_are_told(
    with_tokenizer: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("word1\nword2\n", encoding="utf-8")
    build = optimize(
        with_tokenizer, passes=[Vocab(keep=str(tokens))], output=tmp_path / "out", allow=["vocab"]
    )
    assert build.recipe["sha256"][tokens.as_posix()] == sha256(tokens)
    reasons = {item.name: item.reason for item in build.records[-1].skipped}
    assert "token_type_ids" in reasons["embeddings.token_type_embeddings.weight"]


def test_a_share_that_other_rows_give_away_is_said_to_be_too_low(with_tokenizer: Path) -> None:
    """Rows that are parts of each other hold few surprises for each other."""
    rng = np.random.default_rng(0)
    sentence = rng.integers(0, 90, 400)
    apart, parts = random_samples(22), random_samples(40)
    for sample in parts.feeds:
        length = sample["input_ids"].shape[-1]
        start = int(rng.integers(0, 20))
        sample["input_ids"][:] = sentence[start : start + length]

    def notes(samples: Samples) -> str:
        model = Model.load(with_tokenizer)
        (record,) = Pipeline([Vocab()]).run(model, Context(samples=samples), require_coverage=0.0)[-1:]
        return " ".join(record.notes)

    assert "is to be expected of other text like this" in notes(apart)
    assert "so that other text loses more" in notes(parts)
