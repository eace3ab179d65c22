"""Several targets: compressed once, to what all can run, and an artifact for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from plugins import installed
from typer.testing import CliRunner

from graphcompress import optimize, session
from graphcompress.artifact.folder import read_manifest
from graphcompress.artifact.opening import model_file
from graphcompress.cli import app
from graphcompress.errors import SpeedError, UsageError
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Lowering, Pass, Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from graphcompress.plugin.schemes import INT8, UINT8, integer_products
from graphcompress.plugin.targeting import common_capabilities, parse_targets
from graphcompress.reporting.loading import loading_lines
from graphcompress.targets.cpu.cpu import NOTHING_MEASURED, Cpu


@dataclass(frozen=True)
class Symmetric(Target):
    """A runtime that wants symmetric static int8 and cannot run on this machine."""

    name: ClassVar[str] = "symmetric"
    timed: ClassVar[bool] = False

    @property
    def capabilities(self) -> Capabilities:
        """Symmetric and static."""
        return Capabilities(integer_products(INT8))

    def lower(self, model: Model, folder: Path, ctx: Context) -> Lowering:
        """Write the model as it is."""
        model.clone().save(folder / "model.onnx")
        return Lowering(("one note",), "run by a stand-in", deployed_bytes=1000)

    def session(self, folder: Path) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Run it on the CPU."""
        runtime = session_of(folder / "model.onnx")
        names = [output.name for output in runtime.get_outputs()]
        return lambda feed: dict(zip(names, runtime.run(names, dict(feed)), strict=True))


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch):
    installed(monkeypatch, tmp_path / "site", "other", targets={"symmetric": "test_targeting:Symmetric"})


@pytest.fixture
def built(tiny_bert_path, tiny_samples, tmp_path):
    return optimize(
        tiny_bert_path,
        "int8",
        target="cpu{measure=false},symmetric",
        data=tiny_samples,
        output=tmp_path / "out",
        allow=["int8"],
    )


def test_each_target_has_an_artifact_of_its_own_that_its_session_runs(built, tiny_samples):
    assert [lowered.folder.name for lowered in built.lowered] == ["cpu", "symmetric"]
    feed = tiny_samples.first(4).batch(range(4))
    answers = [session(lowered.folder)(feed) for lowered in built.lowered]
    for name, expected in answers[0].items():
        np.testing.assert_allclose(answers[1][name], expected, atol=1e-4)
    assert read_manifest(built.output) == {"artifacts": ["cpu", "symmetric"]}
    assert read_manifest(built.lowered[1].folder)["target"] == "symmetric"


def test_the_weights_are_quantised_for_all_and_activations_as_each_runs_them_best(built):
    kinds = []
    for lowered in built.lowered:
        graph = Model.load(model_file(lowered.folder)).graph
        zeros = [node.inputs[2].const_value for node in graph if node.op_type == "QuantizeLinear"]
        assert zeros
        kinds.append({(zero.dtype.name, int(zero.numpy())) for zero in zeros})
    assert kinds == [{("UINT8", 128)}, {("INT8", 0)}]


@pytest.mark.parametrize(
    "target", ["cpu{measure=false}", "gpu", "gpu{provider=tensorrt}", "mobile", "mobile{shape=1x40}"]
)
@pytest.mark.filterwarnings("ignore:Specified provider")  # of a GPU, which is not here: the CPU's runs it
def test_the_lines_of_a_target_load_and_run_its_artifact_when_they_are_pasted(
    target, tiny_bert_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    build = optimize(tiny_bert_path, "simplify", target=target, output="out")
    made = {}
    exec("\n".join(loading_lines(build.lowered[0], 100)), made)
    length = 40 if "shape" in target else 24
    feed = {name: np.zeros((1, length), "int64") for name in ("input_ids", "token_type_ids")}
    expected = session("out")({**feed, "attention_mask": np.ones((1, length), "int64")})
    for (name, array), seen in zip(expected.items(), made["outputs"], strict=True):
        np.testing.assert_allclose(seen, array, atol=2e-3, err_msg=name)


def test_a_recipe_of_several_targets_names_them_all(built):
    text = (built.lowered[0].folder / "recipe.toml").read_text()
    assert 'target = "cpu{measure=false},symmetric"' in text


def test_one_table_tells_about_all_targets(built):
    page = (built.output / "report.md").read_text()
    assert page.count("| target | size") == 1
    assert "run by a stand-in" in page


def test_sizes_are_of_what_a_device_gets(built):
    ours, stand_in = (lowered.size.bytes_on_disk for lowered in built.lowered)
    assert ours >= model_file(built.lowered[0].folder).stat().st_size
    assert stand_in == 1000


def test_every_target_says_below_the_table_what_it_did(built):
    page = (built.output / "report.md").read_text()
    assert f"- **cpu**: {NOTHING_MEASURED}" in page
    assert "- **symmetric**: one note" in page


def test_the_screen_says_it_too(tiny_bert_path, tmp_path):
    arguments = ["optimize", str(tiny_bert_path), "--passes", "simplify", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(
        app, [*arguments, "--target", "cpu{measure=false},symmetric", "--no-bench", "-v"]
    )
    assert done.exit_code == 0, done.output
    assert f"cpu         {NOTHING_MEASURED}" in done.stdout
    assert "symmetric   one note" in done.stdout


def test_bench_does_not_time_a_stand_in(built):
    cpu, symmetric = (str(built.output / name) for name in ("cpu", "symmetric"))
    arguments = ["--shapes", "1x4", "--rounds", "1", "--no-roofline"]
    done = CliRunner().invoke(app, ["bench", cpu, symmetric, *arguments])
    assert isinstance(done.exception, SpeedError)
    assert str(done.exception) == "not everything was timed: symmetric; what could be is printed above"
    assert "not measured: symmetric, this machine is not what runs it" in done.stdout
    assert "symmetric 0" not in done.stdout
    document = json.loads(CliRunner().invoke(app, ["bench", cpu, symmetric, *arguments, "--json"]).stdout)
    assert document["not_measured"] == ["symmetric"]
    assert list(document["shapes"][0]["times_ms"]) == ["cpu"]
    alone = CliRunner().invoke(app, ["bench", symmetric, *arguments])
    assert isinstance(alone.exception, UsageError)
    assert "name the model's file in it" in str(alone.exception)


def test_only_what_the_cpu_provider_runs_has_a_roofline(built, monkeypatch):
    cpu = built.output / "cpu"
    arguments = ["bench", str(cpu), "--shapes", "1x4", "--rounds", "1", "--json"]
    assert list(json.loads(CliRunner().invoke(app, arguments).stdout)["roofline"]) == ["cpu"]
    assert "no roofline" not in CliRunner().invoke(app, arguments[:-1]).stdout
    monkeypatch.setattr(Cpu, "runs_on_cpu_provider", lambda self, folder: False)
    monkeypatch.setattr(Cpu, "session", Symmetric.session)
    assert json.loads(CliRunner().invoke(app, arguments).stdout)["roofline"] == {}
    assert "no roofline: cpu, only ONNX models" in CliRunner().invoke(app, arguments[:-1]).stdout


def test_a_folder_of_several_artifacts_says_so_when_it_is_opened(built):
    with pytest.raises(UsageError, match="several targets; name one of"):
        session(built.output)


def test_a_folder_of_several_artifacts_can_be_replaced(built, tiny_bert_path):
    again = optimize(
        tiny_bert_path, "simplify", target="cpu{measure=false}", output=built.output, overwrite=True
    )
    assert json.loads((again.output / "graphcompress.json").read_text())["target"] == "cpu{measure=false}"


def test_what_a_target_cannot_run_is_refused_before_the_model_is_read(tmp_path, tiny_samples):
    with pytest.raises(UsageError, match=r"the target symmetric cannot run .*change activations"):
        optimize(
            tmp_path / "missing.onnx", "int8{activations=uint8}", target="cpu,symmetric", data=tiny_samples
        )


def test_common_capabilities_are_those_of_the_weaker():
    common = common_capabilities(parse_targets("cpu,symmetric"))
    assert common == Capabilities(integer_products(INT8, weight_bits=7))


def test_targets_without_common_activations_are_refused(monkeypatch):
    monkeypatch.setattr(Cpu, "capabilities", Capabilities(integer_products(UINT8)))
    with pytest.raises(UsageError, match="one at a time"):
        common_capabilities(parse_targets("cpu,symmetric"))


def test_a_pass_asks_for_nothing_special_unless_it_says_so():
    class Plain(Pass):
        name: ClassVar[str] = "plain"

        def run(self, model: Model, ctx: Context) -> Record:
            """Nothing."""
            return Record()

    assert Plain().unsupported(Capabilities(schemes=()), calibrated=False) is None
