"""Profiles: what one machine measures, another builds with."""

import json

import pytest
from typer.testing import CliRunner

from graphcompress.build.recipe import check_inputs, read_recipe
from graphcompress.cli import app
from graphcompress.cli.short import with_options
from graphcompress.errors import DataError, OutputError, UsageError
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.profile import Profile, Recorder, check_profile_path, read_profile, write_profile
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.common import form_choice
from graphcompress.targets.cpu import file_comparison
from graphcompress.targets.cpu.cpu import Cpu

pytestmark = pytest.mark.usefixtures("quick_measurements")

SHAPES = [(1, 4), (2, 8)]
TEXT = "1x4,2x8"


@pytest.fixture
def no_measuring(monkeypatch):
    def forbid():
        def refuse(*_, **__):
            raise AssertionError("measured although a profile is given")

        monkeypatch.setattr(form_choice, "turns", refuse)
        monkeypatch.setattr(file_comparison, "interleaved", refuse)

    return forbid


@pytest.fixture
def simplified(tiny_bert):
    Pipeline.parse("simplify").run(tiny_bert, Context())
    return tiny_bert


def test_a_profile_reads_as_it_was_written(tmp_path):
    times = {"2": {"unchanged": [1.0, 2.0]}, "1": {"unchanged": [0.5, 1.5], "sum": [0.25, 1.0]}}
    write_profile(tmp_path / "p.json", SHAPES, times)
    profile = read_profile(tmp_path / "p.json")
    assert profile.times == times
    assert profile.shapes == SHAPES
    assert profile.complete
    assert profile.machine["onnxruntime"] in profile.name
    first = (tmp_path / "p.json").read_bytes()
    write_profile(tmp_path / "p.json", SHAPES, dict(reversed(times.items())))
    assert (tmp_path / "p.json").read_bytes() == first


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "machine": {}, "shapes": [[1, 2]], "times_ms": {}}',
        '{"format": 1, "machine": {}, "shapes": [], "times_ms": {}}',
        '{"format": 1, "machine": {}, "shapes": [[1, 0]], "times_ms": {}}',
        '{"format": 1, "machine": {}, "shapes": [[1, 2]], "times_ms": {"a": {"x": [-1.0]}}}',
    ],
)
def test_what_is_no_profile_is_refused(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UsageError, match="not a profile"):
        read_profile(tmp_path / "p.json")


def test_a_file_that_is_no_profile_is_not_replaced(tmp_path):
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    with pytest.raises(OutputError, match=r"notes\.json exists and is no profile"):
        check_profile_path(tmp_path / "notes.json")
    write_profile(tmp_path / "p.json", SHAPES, {})
    check_profile_path(tmp_path / "p.json")


def test_a_missing_profile_is_refused(tmp_path):
    with pytest.raises(UsageError, match="graphcompress tune"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(OutputError, match="cannot be written"):
        write_profile(tmp_path / "no" / "folder.json", SHAPES, {})


def test_tune_records_what_is_asked_for_only():
    cache = MeasurementCache()
    cache.put("old", {"unchanged": [1.0]})
    recorder = Recorder(cache)
    recorder.put("new", {"unchanged": [2.0]})
    assert recorder.get("missing") is None
    assert set(recorder.times) == {"new"}
    assert recorder.get("old") == {"unchanged": [1.0]}
    assert set(recorder.times) == {"new", "old"}


def test_a_build_by_profile_is_the_build_that_measured(simplified, tmp_path, no_measuring, monkeypatch):
    target = Cpu(shapes=TEXT)
    write_profile(tmp_path / "p.json", SHAPES, target.tune(simplified, Context()))
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here = target.lower(simplified, tmp_path / "here", Context()).record
    no_measuring()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    there = Cpu(profile=str(tmp_path / "p.json")).lower(simplified, tmp_path / "there", Context()).record
    assert there["forms"] == here["forms"]
    assert (tmp_path / "there/model.onnx").read_bytes() == (tmp_path / "here/model.onnx").read_bytes()
    assert "ONNX Runtime" in there["profile"]["machine"]
    assert not (tmp_path / "another machine").exists()


def test_sites_that_a_profile_lacks_have_the_default_form_and_are_named(simplified, tmp_path, no_measuring):
    no_measuring()
    write_profile(tmp_path / "p.json", SHAPES, {})
    record = Cpu(profile=str(tmp_path / "p.json")).lower(simplified, tmp_path, Context()).record
    assert "residual, 5 sites: not in the profile; they have the default form, sum" in record["notes"]
    assert {choice["form"] for choice in record["forms"] if choice["family"] == "residual"} == {"sum"}


def test_a_profile_of_other_shapes_is_refused(simplified, tmp_path):
    write_profile(tmp_path / "p.json", SHAPES, {})
    with pytest.raises(UsageError, match="measured at 1x4,2x8, not at 1x5"):
        Cpu(profile=str(tmp_path / "p.json"), shapes="1x5").lower(simplified, tmp_path, Context())
    with pytest.raises(UsageError, match="leave one of them out"):
        Cpu(profile="p.json", measure=False)


def test_profiles_measure_nothing():
    profile = Profile({"processor": "X", "cores": 2, "onnxruntime": "1"}, SHAPES, {})
    profile.put("a", {"unchanged": [1.0]})
    assert profile.get("a") is None
    assert profile.name == "X, 2 cores, ONNX Runtime 1"


# ---- the command line


def test_tune_writes_what_optimize_reads(tiny_bert_path, tmp_path):
    path = tmp_path / "p.json"
    arguments = ["tune", str(tiny_bert_path), "--out", str(path), "--shapes", TEXT, "--json"]
    done = CliRunner().invoke(app, [*arguments, "--passes", "simplify"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sites"] == len(read_profile(path).times) > 0
    build = ["optimize", str(tiny_bert_path), "--passes", "simplify"]
    done = CliRunner().invoke(
        app, [*build, "--profile", str(path), "--no-bench", "--verbose", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert "forms as measured on" in done.stdout
    recipe = tmp_path / "out" / "recipe.toml"
    assert f"profile={path.as_posix()}" in recipe.read_text()
    assert path.as_posix() in read_recipe(recipe)["sha256"]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"p\.json is not the file that the recipe was made from"):
        check_inputs(read_recipe(recipe)["sha256"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "none/p.json"), "a folder that exists"),
        (("--out", "."), "a folder that exists"),
        (("--out", "p.json", "--target", "mobile"), "mobile measures nothing"),
    ],
)
def test_tune_refuses_before_it_reads_a_model(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed = CliRunner().invoke(app, ["tune", "missing.onnx", *arguments])
    assert words in str(failed.exception)


def test_options_of_the_command_line_are_options_of_the_target():
    assert with_options("cpu", shapes=None) == "cpu"
    assert with_options("cpu{isa=arm}", shapes="1x8") == "cpu{shapes=1x8 isa=arm}"
    assert with_options("cpu{shapes=1x8}", shapes="1x8") == "cpu{shapes=1x8}"
    assert with_options("cpu{shapes=1x8}", override=True, shapes="1x9") == "cpu{shapes=1x9}"
    with pytest.raises(UsageError, match="different things"):
        with_options("cpu{shapes=1x8}", shapes="1x9")
    with pytest.raises(UsageError, match="no option"):
        with_options("cpu", threads="1")
