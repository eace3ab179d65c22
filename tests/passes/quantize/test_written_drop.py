"""int8 of a model that writes, judged by what it writes: --max-drop with a metric of texts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import bigram
import pytest
from sequence_models import VOCABULARY

from graphcompress import optimize
from graphcompress.generation.generator import open_generator

WORDS = ("<pad>", "</s>", *(f"word{number}" for number in range(2, VOCABULARY)))
ALLOWED = 0.5


@pytest.fixture
def translator(sequence_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    """Marian with random weights, and data whose references are what it writes itself: its BLEU is 100."""
    folder = tmp_path / "model"
    shutil.copytree(sequence_folders["marian"], folder)
    bigram.tokenizer(WORDS).save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 12})
    )
    sources = [" ".join(f"word{(7 * row + 3 * place) % 97 + 2}" for place in range(6)) for row in range(12)]
    written = open_generator(folder).texts(sources)
    rows = [{"source": source, "target": target} for source, target in zip(sources, written, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_int8_leaves_in_float_what_the_written_texts_need(translator: Path, tmp_path: Path) -> None:
    """The model that came in is the oracle: what it writes is the reference, so that any other word costs."""
    data = tmp_path / "pairs.jsonl"
    options = {"data": data, "eval_data": data, "metric": "bleu", "target": "cpu{measure=false}"}
    passes = "int8{max_divergence=none max_model_error=none}"
    free = optimize(translator, passes, output=tmp_path / "free", allow=("int8",), **options).lowered[0]
    held = optimize(
        translator, passes, output=tmp_path / "held", allow=("int8",), max_drop=str(ALLOWED), **options
    ).lowered[0]
    assert free.drop.value > ALLOWED
    assert held.drop.value <= ALLOWED
    assert free.size.bytes_on_disk < held.size.bytes_on_disk
