"""Goals of a model that writes: how fast it writes decides, and what it writes; a checkpoint is enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import bigram
import pytest
from sequence_models import VOCABULARY, made, text

from graphcompress import optimize
from graphcompress.build.goals import slowest, speed_goal
from graphcompress.errors import GoalError
from graphcompress.generation.generator import open_generator
from graphcompress.measure.bench import WRITTEN, ShapeResult
from graphcompress.measure.timing import Ratio

TARGET = "cpu{measure=false}"


def shape(name: str, ratio: float) -> ShapeResult:
    return ShapeResult(name, "before", ratios={"after": Ratio(ratio, ratio, ratio)})


def test_tokens_per_second_decide_where_they_were_measured() -> None:
    run, written = shape("1×17 (natural)", 0.8), shape(f"1×32{WRITTEN}", 1.6)
    assert not speed_goal(1.5, "after", [run]).met
    assert speed_goal(1.5, "after", [run, written]).met
    assert slowest("after", [run, written]) == "is 1.60 × as fast at 1×32 (written)"
    # Where writing could not be timed, the run alone does not show the goal.
    assert not speed_goal(0.5, "after", [run, replace(written, ratios={}, skipped="too slow")]).met


def test_a_checkpoint_is_compressed_with_its_past_and_timed_while_it_writes(
    tmp_path: Path, sequence_folders: Mapping[str, Path]
) -> None:
    checkpoint = tmp_path / "marian"
    made("marian").save_pretrained(checkpoint)
    build = optimize(checkpoint, "simplify", target=TARGET, bench=True, output=tmp_path / "out")
    names = ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx", "config.json")
    assert all((build.output / name).is_file() for name in names)
    assert text("marian", build.output).tolist() == text("marian", sequence_folders["marian"]).tolist()
    written = [result for result in build.benched if result.written]
    assert [result.shape for result in written] == ["1×32 (written)", "8×32 (written)"]
    assert all("after" in result.ratios for result in written)


def test_a_speed_that_writing_does_not_reach_is_refused(
    tmp_path: Path, sequence_folders: Mapping[str, Path]
) -> None:
    folder = sequence_folders["marian"]
    with pytest.raises(GoalError, match=r"min-speedup 1000 is missed: the artifact is .* \(written\)"):
        optimize(folder, "simplify", target=TARGET, min_speedup=1000.0, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_drop_of_what_is_written_is_refused(tmp_path: Path, sequence_folders: Mapping[str, Path]) -> None:
    """The references are what the model itself writes, so that it scores 100."""
    pytest.importorskip("sacrebleu")
    folder = shutil.copytree(sequence_folders["marian"], tmp_path / "marian-onnx")
    words = ("<pad>", "</s>", *(f"word{number}" for number in range(2, VOCABULARY)))
    bigram.tokenizer(words).save(str(folder / "tokenizer.json"))
    prompt, data = "word5 word6 word7", tmp_path / "rows.jsonl"
    (written,) = open_generator(folder).texts([prompt])
    data.write_text(json.dumps({"source": prompt, "target": written}))
    with pytest.raises(GoalError, match="max-drop 1 is missed: the metric is"):
        optimize(
            folder,
            "prune{ffn=0.75 heads=0.5}",
            target=TARGET,
            eval_data=data,
            metric="bleu",
            max_drop="1",
            allow=("prune",),
            output=tmp_path / "out",
        )
