"""vocab on models that write: heads lose the rows that tables lose, and what is written stays equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sequence_models
from matrix.architecture import VOCABULARY

from graphcompress.data.samples import Samples
from graphcompress.data.sequences import sequence_samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.metrics import NEVER
from graphcompress.passes.vocab.heads import heads_of
from graphcompress.passes.vocab.vocab import Vocab
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

NAMES = ("marian", "bart", "t5", "whisper", "gpt2", "llama", "t5, merged")


def seen_by(name: str, folder: Path) -> np.ndarray:
    """Ids that the model reads and writes in the texts of a test."""
    given, first = sequence_models.prompt(name.partition(",")[0])
    read = given.get("input_ids", first)
    written = sequence_models.text(name, folder)
    return np.unique(np.concatenate([ids.ravel() for ids in (read, first, written)]))


def with_tokens(model: Model, ids: np.ndarray) -> Samples:
    """Samples that hold these ids and nothing else, for every input of ids."""
    names = [value.name or "" for value in model.graph.inputs if (value.name or "").endswith("input_ids")]
    return Samples([dict.fromkeys(names, ids)])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_text_is_written_by_fewer_rows(
    name: str, sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = sequence_folders[name]
    model, ids = Model.load(folder), seen_by(name, folder)
    before = model.parameters
    record = Vocab().run(model, Context(samples=with_tokens(model, ids)))
    assert model.parameters < before - (VOCABULARY - len(ids) - 5) * 48
    assert any("tokens are scored" in item.detail for item in record.touched)
    saved = sequence_models.saved(model, tmp_path / "out")
    for file in folder.glob("*.json"):
        shutil.copy(file, saved)
    np.testing.assert_array_equal(sequence_models.text(name, saved), sequence_models.text(name, folder))
    assert Vocab().run(model, Context(samples=with_tokens(model, ids))).touched == ()


@pytest.mark.parametrize("name", ["marian", "gpt2", "llama"])
def test_scores_of_kept_tokens_are_equal_and_the_others_never_win(
    name: str, sequence_folders: dict[str, Path]
) -> None:
    model = Model.load(sequence_folders[name])
    texts = sequence_models.random_texts(name, 4)
    samples = sequence_samples(model, texts)
    feeds = list(samples.batches(1))  # padding is a token that no text has
    with Runner(model) as runner:
        before = [runner(feed) for feed in feeds]
    records = Pipeline([Vocab()]).run(model, Context(samples=samples))
    assert records[0].step.sqnr_db > 100
    kept = np.array(sorted(model.tokens or ()))
    assert 10 < len(kept) < VOCABULARY
    gone = np.setdiff1d(np.arange(VOCABULARY), kept)
    with Runner(model) as runner:
        for feed, expected in zip(feeds, before, strict=True):
            for output, array in runner(feed).items():
                if not output.endswith("logits"):
                    continue
                np.testing.assert_allclose(array[..., kept], expected[output][..., kept], rtol=0, atol=1e-5)
                assert (array[..., gone] == NEVER).all()


def test_ids_that_the_configuration_names_stay(sequence_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(sequence_folders["marian"], tmp_path / "given")
    said = {"eos_token_id": [90, 91], "forced_decoder_ids": [[1, 92]], "lang_to_id": {"<|de|>": 93}}
    (folder / "generation_config.json").write_text(json.dumps({**said, "suppress_tokens": [94]}))
    model = Model.load(folder)
    Vocab().run(model, Context(samples=with_tokens(model, np.array([5, 6]))))
    assert {5, 6, 90, 91, 92, 93} <= set(model.tokens or ())
    assert 94 not in (model.tokens or ())


def test_parts_share_what_is_left_of_the_table(sequence_folders: dict[str, Path], tmp_path: Path) -> None:
    model = Model.load(sequence_folders["marian"])
    assert len(heads_of(model)) == 2
    Vocab().run(model, Context(samples=with_tokens(model, np.arange(5, 20))))
    tables = [value for value in model.graph.initializers.values() if (value.name or "").endswith(".kept")]
    assert sum(len(value.shape or ()) == 2 and value.shape[1] == 48 for value in tables) == 1


def test_where_all_tokens_occur_nothing_is_put_in_between(sequence_folders: dict[str, Path]) -> None:
    model = Model.load(sequence_folders["gpt2"])
    before = len(model.graph)
    record = Vocab().run(model, Context(samples=with_tokens(model, np.arange(VOCABULARY))))
    assert len(model.graph) == before
    assert not record.touched
    assert any("all of its 101 tokens occur" in item.reason for item in record.skipped)
