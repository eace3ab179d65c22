"""Artifacts of models of several files: the same files, which run as one, and a configuration that fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession
from sequence_models import FFN, HEADS, WIDTH, text

from graphcompress.artifact.opening import described, session
from graphcompress.build.optimize import optimize
from graphcompress.build.questions import verify
from graphcompress.data.made_up import varied_samples
from graphcompress.errors import InvalidModelError, UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import compare
from graphcompress.plugin.base import Lowering
from graphcompress.plugin.context import Context
from graphcompress.reporting.loading import loading_lines
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset
from graphcompress.targets.cpu.cpu import Cpu

TARGET = "cpu{measure=false}"


def built(folder: Path, output: Path, passes: str) -> Path:
    allow = ("prune",) if "prune" in passes else ()
    return optimize(folder, passes=passes, target=TARGET, output=output, allow=allow).output


@pytest.mark.parametrize("name", ["marian", "t5, merged", "llama"])
def test_an_artifact_has_the_files_that_came_in_and_writes_the_same_text(
    name: str, sequence_folders, tmp_path
) -> None:
    folder = sequence_folders[name]
    artifact = built(folder, tmp_path / "out", "simplify")
    files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert all((artifact / file).is_file() for file in files)
    assert np.array_equal(text(name, artifact), text(name, folder))


@pytest.mark.parametrize("name", ["marian", "t5, merged"])
def test_parts_of_an_artifact_run_as_one(name: str, sequence_folders, tmp_path) -> None:
    folder = sequence_folders[name]
    artifact = built(folder, tmp_path / "out", "simplify")
    samples = varied_samples(described(folder), count=3)
    feeds = list(samples.batches(2))
    with Runner(Model.load(folder)) as run:
        reference = [run(feed) for feed in feeds]
    for path in (folder, artifact):
        assert compare(reference, session(path), feeds).max_relative_error < 1e-4


@pytest.mark.parametrize("name", ["marian", "t5, merged"])
def test_one_part_that_needs_a_newer_opset_takes_the_others_with_it(
    name: str, sequence_folders, tmp_path, monkeypatch
) -> None:
    lower = Cpu.lower

    def with_a_newer_first_pass(self: Cpu, model: Model, folder: Path, ctx: Context) -> Lowering:
        found = lower(self, model, folder, ctx)
        if folder.name == "decoder":
            newer = Model.load(folder / self.model_file)
            with Rewriter(newer, ctx) as rw:
                assert raise_opset(rw, 23) is None
            newer.save(folder / self.model_file)
        return found

    monkeypatch.setattr(Cpu, "lower", with_a_newer_first_pass)
    artifact = built(sequence_folders[name], tmp_path / "out", "simplify")
    assert Model.load(artifact).opset == 23
    assert verify(sequence_folders[name], artifact).difference.max_relative_error < 1e-4
    assert np.array_equal(text(name, artifact), text(name, sequence_folders[name]))


def test_the_configuration_says_what_was_cut(sequence_folders, tmp_path) -> None:
    artifact = built(sequence_folders["t5"], tmp_path / "out", "prune{ffn=0.25 heads=0.25}")
    config = json.loads((artifact / "config.json").read_text(encoding="utf-8"))
    assert (config["num_heads"], config["d_ff"]) == (HEADS - 1, 3 * FFN // 4)


def test_a_head_size_that_the_configuration_cannot_say_is_told(sequence_folders, tmp_path) -> None:
    artifact = built(sequence_folders["gpt2"], tmp_path / "out", "prune{heads=0.25}")
    report = (artifact / "report.md").read_text(encoding="utf-8")
    assert f"config.json has no name for the head size {WIDTH}" in report


def test_a_folder_that_lacks_a_part_is_refused_before_the_work(sequence_folders, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sequence_folders["bart"], folder)
    (folder / "decoder_model.onnx").unlink()
    with pytest.raises(InvalidModelError, match="which only a first pass returns"):
        optimize(folder, passes="int8", target=TARGET, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_lines_that_load_parts_name_their_folder(sequence_folders, tmp_path) -> None:
    build = optimize(sequence_folders["bart"], passes="simplify", target=TARGET, output=tmp_path / "out")
    made: dict[str, object] = {}
    exec("\n".join(loading_lines(build.lowered[0], 100)), made)
    assert set(made["sessions"]) == {"encoder_model", "decoder_model", "decoder_with_past_model"}
    assert all(isinstance(one, InferenceSession) for one in made["sessions"].values())


def test_parts_in_folders_are_compared_with_what_they_were_made_from(sequence_folders, tmp_path) -> None:
    folder = sequence_folders["marian"]
    out = optimize(
        folder, passes="simplify", target="mobile,gpu,tensorrt{build=never}", output=tmp_path / "o"
    )
    for name, least in (("mobile", 100.0), ("gpu", 50.0), ("tensorrt", 50.0)):
        assert verify(folder, out.output / name).difference.sqnr_db > least
    with pytest.raises(
        UsageError, match=r"a folder for each of its parts \(encoder, decoder, decoder_with_past"
    ):
        verify(out.output / "mobile", folder)


def test_a_folder_with_one_file_that_writes_is_a_model_as_it_is_to_optimize(
    sequence_folders, tmp_path
) -> None:
    folder = sequence_folders["llama"]
    artifact = built(folder, tmp_path / "out", "simplify")
    assert verify(folder, artifact).difference.sqnr_db > 100.0


def test_a_weight_that_two_decoders_share_is_stored_once(sequence_folders, tmp_path) -> None:
    folder = built(sequence_folders["marian"], tmp_path / "out", "int8")
    step = onnx.load(folder / "decoder_with_past_model.onnx", load_external_data=False).graph
    own = [tensor for tensor in step.initializer if not tensor.external_data]
    assert any(node.op_type == "Split" for node in step.node)  # projections are put side by side
    # A first pass reads all weights of a step, too.
    assert not [tensor.name for tensor in own if len(tensor.dims) > 1 and np.prod(tensor.dims) > WIDTH]
    assert not [text for text in step.value_info if text.name in {tensor.name for tensor in own}]
