"""The command line as a user runs it: its streams, its exit codes, what it leaves behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from bert import Bert
from commandline import Done, run

from graphcompress import cli
from graphcompress.cli.optimize import with_changes
from graphcompress.graph.model import Model
from graphcompress.plugin.registry import KINDS

PASSES = "simplify,int8"
LIMIT = ("--no-bench", "--target", "cpu{measure=false}")
"""Nothing is timed where times are not the subject."""
TIMES = json.loads(
    (Path(__file__).parents[2] / "docs" / "schema" / "times.schema.json").read_text(encoding="utf-8")
)
HEAVY = {"torch", "onnx_ir", "onnxruntime", "numpy", "transformers"}


def spawn(*arguments: str, code: str = "") -> Done:
    """Run the command line, or ``code``, in a process of its own."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "graphcompress")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert_path):
    """A folder with a model and samples, and an artifact ``small`` made of them."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "model.onnx").write_bytes(tiny_bert_path.read_bytes())
    rng = np.random.default_rng(0)
    with (folder / "data.jsonl").open("w") as file:
        for length in (5, 9, 12, 7, 6, 11, 4, 8):
            ids = rng.integers(1, 100, length).tolist()
            row = {"input_ids": ids, "attention_mask": [1] * length, "token_type_ids": [0] * length}
            file.write(json.dumps(row) + "\n")
    done = run(
        "optimize",
        "model.onnx",
        "--passes",
        PASSES,
        "--data",
        "data.jsonl",
        "-o",
        "small",
        *LIMIT,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- start-up


def cpu_seconds(*arguments: str, code: str = "") -> tuple[float, Done]:
    """Processor time of a child, the best of three: a busy machine stretches it less than the clock's."""
    spent = []
    for _ in range(3):
        before = os.times()
        done = spawn(*arguments, code=code)
        after = os.times()
        spent.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    return min(spent), done


def test_help_is_quick_and_names_the_exit_codes():
    seconds, done = cpu_seconds("--help")
    assert done.returncode == 0
    for line in (
        "3 contract, coverage, goal or speed missed",
        "7 output",
        "130 interrupted",
        "143 terminated",
    ):
        assert line in " ".join(done.stdout.split())
    assert seconds < 1.0


def test_importing_the_package_is_quick_and_light():
    code = f"import sys, graphcompress; print(*sorted({HEAVY} & set(sys.modules)))"
    seconds, done = cpu_seconds(code=code)
    assert done == Done(0, "\n", "")
    assert seconds < 0.5


def test_the_help_of_a_command_loads_no_heavy_module():
    code = (
        "import sys\nfrom graphcompress.cli import app\n"
        "try: app(['optimize', '--help'])\nexcept SystemExit: pass\n"
        f"print('heavy:', *sorted({HEAVY} & set(sys.modules)))"
    )
    assert spawn(code=code).stdout.strip().endswith("heavy:")


# ---- optimize


def test_optimize_says_what_happened(folder):
    said = (folder / "said.txt").read_text()
    for words in (
        "size  ",
        "outputs  ",
        "verdict  ",
        "written  small",
        'InferenceSession("small/model.onnx")',
    ):
        assert words in said
    *_, simplify, int8 = said.splitlines()
    assert simplify.startswith("simplify: ")
    assert simplify.endswith("; answers the same")
    assert int8.startswith("int8: 12 weights changed, 3 left alone, ")
    assert max(map(len, said.splitlines())) <= 100


def test_the_artifact_is_whole(folder):
    names = set(contents(folder / "small"))
    assert {"model.onnx", "graphcompress.json", "recipe.toml", "report.md"} <= names
    manifest = json.loads((folder / "small" / "graphcompress.json").read_text())
    assert manifest["recipe"]["passes"] == PASSES
    assert set(manifest["input"]) == {"model.onnx", "data.jsonl"}
    assert [record["text"] for record in manifest["passes"]] == PASSES.split(",")


def test_the_same_options_give_the_same_bytes(folder):
    done = run(
        "optimize",
        "model.onnx",
        "--passes",
        PASSES,
        "--data",
        "data.jsonl",
        "-o",
        "again",
        *LIMIT,
        cwd=folder,
    )
    assert done.returncode == 0
    assert contents(folder / "again") == contents(folder / "small")


def test_a_recipe_remakes_the_artifact(folder):
    done = run("optimize", "--recipe", "small/recipe.toml", "-o", "remade", "--no-bench", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert contents(folder / "remade") == contents(folder / "small")


def test_what_was_pinned_goes_with_the_options_that_it_was_measured_for():
    base = {"model": "m.onnx", "target": "cpu", "passes": "int8", "pinned": {"cpu": "{}"}}
    assert with_changes(base, {"output": "out", "target": "cpu", "seed": None})["pinned"] == {"cpu": "{}"}
    for change in ({"passes": "prune"}, {"model": "n.onnx"}, {"target": "cpu{shapes=1x4}"}, {"seed": 1}):
        assert with_changes(base, change)["pinned"] == {}


def test_a_recipe_refuses_a_changed_input(folder, tmp_path):
    (tmp_path / "data.jsonl").write_bytes((folder / "data.jsonl").read_bytes())
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    done = run("optimize", "--recipe", folder / "small" / "recipe.toml", cwd=tmp_path)
    assert done.returncode == 6
    assert "SHA-256 differs" in done.stderr


def test_another_input_replaces_its_own_hash_only(folder, tmp_path):
    recipe = folder / "small" / "recipe.toml"
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    done = run("optimize", "--recipe", recipe, "--data", "other.jsonl", cwd=tmp_path)
    assert done.returncode == 6
    assert "other.jsonl: no such data file" in done.stderr
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x00")
    done = run("optimize", "--recipe", recipe, "--data", "other.jsonl", cwd=tmp_path)
    assert done.returncode == 6
    assert "model.onnx is not the file that the recipe was made from" in done.stderr.replace("\n", " ")
    (tmp_path / "data.jsonl").write_text("changed")
    done = run("optimize", "another.onnx", "--recipe", recipe, cwd=tmp_path)
    assert done.returncode == 6
    assert "data.jsonl is not the file that the recipe was made from" in done.stderr.replace("\n", " ")


def test_json_is_one_document(folder):
    done = run("optimize", "model.onnx", "--passes", "simplify", "-o", "json", "--json", *LIMIT, cwd=folder)
    document = json.loads(done.stdout)
    assert document["output"] == "json"
    assert document["verification"]["artifact"]["sqnr_db"] > 80
    assert document["latency"] == []


def test_a_report_holds_the_measured_times(folder):
    done = run(
        *("optimize", "model.onnx", "--passes", "simplify", "--target", "cpu{measure=false}"),
        *("-o", "timed", "--report", "report.html"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert " tokens (natural): " in done.stdout
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert re.search(r"\d\.\d\d × as fast", page)
    assert page == (folder / "timed" / "report.html").read_text()
    jsonschema.validate(json.loads((folder / "timed" / "times.json").read_text()), TIMES)
    times = json.loads((folder / "timed" / "times.json").read_text())
    assert [len(times["steps"]["ms"]), times["steps"]["shape"]] == [2, times["shapes"][0]["shape"]]
    assert all({"before", "after"} <= set(one) for one in times["operators_ms"])
    assert len(times["operators_ms"]) == sum(bool(one["ratios"]) for one in times["shapes"])
    # Times differ from run to run; every other file is the same without them.
    assert run("optimize", "--recipe", "timed/recipe.toml", "-o", "untimed", "--no-bench", cwd=folder)[0] == 0
    first, second = contents(folder / "timed"), contents(folder / "untimed")
    assert {name for name in first if first[name] != second.get(name)} == {"report.html", "times.json"}


def test_an_existing_folder_is_kept_unless_told(folder):
    done = run("optimize", "model.onnx", "-o", "small", *LIMIT, cwd=folder)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr


def test_coverage_fails_closed(folder):
    done = run(
        *("optimize", "model.onnx", "--passes", "int8", "--data", "data.jsonl", "-o", "covered"),
        *("--require-coverage", "1.0", *LIMIT),
        cwd=folder,
    )
    covered = (folder / "covered").exists()
    assert (done.returncode, covered) in ((0, True), (3, False))
    if not covered:
        assert "100.0% are required" in done.stderr


# ---- the other commands


def test_verify_compares_two_models(folder):
    done = run("verify", "model.onnx", "small", "--data", "data.jsonl", "--json", cwd=folder)
    document = json.loads(done.stdout)
    assert document["difference"]["samples"] == 8
    assert document["difference"]["sqnr_db"] > 5
    assert document["batch_invariance"]["a"]["changed"] == 0


@pytest.mark.parametrize("order", [("model.onnx", "changed"), ("changed", "model.onnx")])
def test_verify_names_the_files_of_an_artifact_that_are_not_as_they_were_built(order, folder, tmp_path):
    shutil.copytree(folder / "small", tmp_path / "changed")
    shutil.copy(folder / "model.onnx", tmp_path)
    assert run("verify", *order, cwd=tmp_path).returncode == 0
    shutil.copy(folder / "model.onnx", tmp_path / "changed" / "model.onnx")  # runs, and answers well
    (tmp_path / "changed" / "report.md").unlink()
    done = run("verify", *order, cwd=tmp_path)
    assert done.returncode == 3
    assert "changed is not as it was built: report.md is missing, model.onnx was changed; " in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [("--max-error", 1e-6, 3), ("--max-error", 0.9, 0), ("--min-sqnr-db", 120, 3), ("--min-sqnr-db", 1, 0)],
)
def test_verify_fails_above_the_allowed_error(folder, option, value, code):
    done = run("verify", "model.onnx", "small", option, value, cwd=folder)
    assert done.returncode == code
    assert ("at most 1e-06 is allowed" in done.stderr) == (code == 3)


def test_bench_takes_turns(folder):
    done = run(
        *("bench", "model.onnx", "small", "--data", "data.jsonl"),
        *("--shapes", "1xnatural,2x16", "--rounds", "2", "--json"),
        cwd=folder,
    )  # fmt: skip
    shapes = json.loads(done.stdout)["shapes"]
    assert [shape["shape"] for shape in shapes] == ["1×8 (natural)", "2×16"]
    assert all(set(shape["times_ms"]) == {"model.onnx", "small"} for shape in shapes)
    assert all(shape["ratios"]["small"]["median"] > 0 for shape in shapes)


def test_bench_says_why_a_shape_was_not_measured(folder):
    done = run("bench", "model.onnx", "--shapes", "1x999", "--rounds", "1", cwd=folder)
    assert done.returncode == 3
    assert "not measured: model.onnx does not run at this shape" in done.stdout
    assert done.stderr == "error: not everything was timed: 1×999; what could be is printed above\n"


def test_bench_times_the_models_that_run_at_a_shape(folder, tmp_path):
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    onnx.save(Bert(positions=128).model(), tmp_path / "longer.onnx")
    shapes = ("--shapes", "1x8,1x100", "--rounds", "1", "--no-roofline", "--json")
    done = run("bench", "longer.onnx", "model.onnx", *shapes, cwd=tmp_path)
    assert done.returncode == 3
    short, long = json.loads(done.stdout)["shapes"]
    assert set(short["times_ms"]) == {"longer.onnx", "model.onnx"}
    assert set(long["times_ms"]) == {"longer.onnx"}
    assert set(long["failed"]) == {"model.onnx"}


def test_verify_refuses_models_of_other_inputs(folder):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "other",
        [value("x", 1, [None, 4])],
        [value("y", 1, [None, 4])],
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), folder / "other.onnx")
    done = run("verify", "model.onnx", "other.onnx", cwd=folder)
    assert done.returncode == 2
    assert "model.onnx takes attention_mask, input_ids, token_type_ids, other.onnx takes x" in done.stderr


def test_inspect_shows_what_is_there(folder):
    done = run("inspect", "model.onnx", "--passes", "simplify", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert len(found["attentions"]) == 2
    assert [layer["heads"] for layer in found["layers"]] == [4, 4]
    assert {group["kind"] for group in found["groups"]} >= {"ffn", "head"}
    assert sum(weight["macs"] for weight in found["weights"]) < found["macs"]
    assert [item["text"] for item in found["opportunities"]] == ["simplify"]


@pytest.mark.parametrize("command", [kind.plural for kind in KINDS])
def test_listings_give_defaults_and_contracts(command):
    entries = json.loads(run(command, "--json").stdout)
    assert all(entry["summary"] for entry in entries)
    assert all(option["help"] for entry in entries for option in entry["options"])
    if command == "passes":
        assert all(entry["contract"] for entry in entries)
    if command == "metrics":
        better = {entry["name"]: entry["better"] for entry in entries}
        assert {name for name, direction in better.items() if direction == "lower"} == {"perplexity", "wer"}
        assert set(better) >= {"accuracy", "bleu", "entity-f1", "spearman", "squad-f1", "top-k"}
        assert "  needs: a column label or labels or target" in run(command, "accuracy").stdout
    if command == "targets":
        runs = {entry["name"]: entry["capabilities"] for entry in entries}
        (scheme,) = runs["tensorrt"]["schemes"]
        assert (scheme["weights"]["bits"], scheme["weights"]["per"]["name"]) == (8, "channel")
        assert scheme["activations"]["signed"]
        assert not scheme["activations"]["dynamic"]
        words = "int8 weights per channel with activations in int8 (static); weights stored or expressions"
        assert words in run(command, "tensorrt").stdout
    assert entries[0]["name"] in run(command, entries[0]["name"]).stdout


# ---- errors: one sentence, the documented code, nothing written


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("optimise", "model.onnx"), 2, "optimize"),
        (("optimize", "model.onnx", "--pases", "int8"), 2, "--passes"),
        (("optimize",), 2, "no model is given"),
        (("optimize", "model.onnx", "--passes", "int9"), 2, "did you mean 'int8'"),
        (("optimize", "model.onnx", "--passes", "int8{bits=4}"), 2, "has no option 'bits'"),
        (("optimize", "model.onnx", "--target", "cqu"), 2, "did you mean 'cpu'"),
        (("optimize", "model.onnx", "--metric", "acuracy"), 2, "did you mean 'accuracy'"),
        (("optimize", "model.onnx", "--metric", "accuracy"), 2, "needs samples"),
        (("optimize", "model.onnx", "--eval-data", "data.jsonl"), 2, "--metric"),
        (("optimize", "model.onnx", "--allow", "krom"), 2, "did you mean 'kron'"),
        (("optimize", "model.onnx", "--require-coverage", "2"), 2, "between 0 and 1"),
        (("optimize", "model.onnx", "--report", "r.pdf"), 2, ".md or .html"),
        (("optimize", "model.onnx", "--report", "none/r.md"), 2, "there is no folder none"),
        (("optimize", "missing.onnx"), 5, "no such file"),
        (("optimize", "data.jsonl"), 5, "not an ONNX file"),
        (("optimize", "cut.onnx"), 5, "truncated"),
        (("optimize", "plain.onnx"), 4, "nothing to compress"),
        (("optimize", "model.onnx", "--data", "none.jsonl"), 6, "no such data file"),
        (
            ("optimize", "model.onnx", "--data", "data.jsonl", "--metric", "accuracy"),
            6,
            "needs a column label",
        ),
        (("verify", "model.onnx", "elsewhere"), 5, "no such file"),
        (("verify", "model.onnx", "data.jsonl"), 5, "data.jsonl is JSON, not an ONNX file"),
        (("bench", "model.onnx", "--shapes", "128"), 2, "expected <batch>x<length>"),
        (("passes", "krom"), 2, "did you mean 'kron'"),
    ],
)
def test_bad_input_is_one_sentence_and_a_code(folder, arguments, code, words):
    (folder / "cut.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    _write_plain(folder / "plain.onnx")
    before = set(folder.iterdir())
    done = run(*arguments, cwd=folder)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert set(folder.iterdir()) == before


def _write_plain(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        "plain",
        [value("x", 1, [None, 4])],
        [value("y", 1, [None, 4])],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)


def test_an_unexpected_error_is_short_and_debug_shows_it(folder, monkeypatch):
    monkeypatch.setattr(Model, "load", None)
    done = run("optimize", "model.onnx", "-o", "broken", cwd=folder)
    assert done.returncode == 1
    assert "--debug" in done.stderr
    monkeypatch.setattr(sys, "argv", ["graphcompress", "optimize", str(folder / "model.onnx"), "--debug"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with pytest.raises(TypeError, match="not callable"):
        cli.main()


def test_a_full_disk_is_one_sentence(folder, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Model, "write", full)
    done = run("optimize", "model.onnx", "-o", "full", cwd=folder)
    assert done.returncode == 7
    assert "No space left on device" in done.stderr
    assert not (folder / "full").exists()


SLOW = """
import sys, time, graphcompress.targets.cpu.cpu as cpu
def slow(self, model, folder, ctx):
    (folder / "half.onnx").write_bytes(b"half")
    print("lowering", flush=True)
    time.sleep(60)
cpu.Cpu.lower = slow
from graphcompress.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(folder, tmp_path, number, code):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = set(folder.iterdir())
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW,
            "optimize",
            "model.onnx",
            "--passes",
            "simplify",
            "-o",
            "cut-off",
            "--json",
        ],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "lowering\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    command = "optimize model.onnx --passes simplify -o cut-off --json"
    how = "interrupted" if code == 130 else "terminated"
    assert said == f"{how}; no artifact was written; start again with: graphcompress {command}\n"
    assert set(folder.iterdir()) == before
    assert not list(temporary.glob("*graphcompress*"))
