"""Bad input: one sentence that says what, where and what to do; the documented exit code; nothing written."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import tokenizers
from bert import Bert
from hypothesis import given, settings
from hypothesis import strategies as st

from graphcompress import cli
from graphcompress.build import optimize as optimize_module
from graphcompress.errors import InvalidModelError
from graphcompress.files import scratch
from graphcompress.files.scratch import Scratch
from graphcompress.graph.model import Model

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parents[1] / "hostile" / "models.py")
assert _spec is not None
assert _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

SUGGESTIONS = (
    *(
        "again",
        "check",
        "choose",
        "convert",
        "copy",
        "correct",
        "did you mean",
        "fetch",
        "first",
        "free",
        "give",
    ),
    *(
        "expected",
        "install",
        "must",
        "name",
        "put",
        "rename",
        "run",
        "start from",
        "store",
        "upgrade",
        "known",
    ),
)


class Said:
    """What one run of the command line left: exit code, streams and files."""

    def __init__(self, code: int, stdout: str, stderr: str, new: set[str]) -> None:
        self.code, self.stdout, self.stderr, self.new = code, stdout, stderr, new

    def check(self, code: int, *words: str) -> None:
        # A run that takes longer than a moment tells how far it is.
        told = [line for line in self.stderr.strip().splitlines() if not line.startswith("[")]
        sentence = "\n".join(told)
        assert self.code == code, sentence
        assert "Traceback" not in sentence
        assert sentence.startswith("error: ")
        assert len(sentence.splitlines()) == 1
        assert "error: unexpected" not in sentence
        for word in words:
            assert word in sentence
        assert any(word in sentence for word in SUGGESTIONS), sentence
        assert self.new == set()


@pytest.fixture
def folder(tmp_path: Path, tiny_bert_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "model.onnx").write_bytes(tiny_bert_path.read_bytes())
    return tmp_path / "work"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process, in ``folder``, with a watched temporary folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(folder.parent / "tmp"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(*arguments: str) -> Said:
        before = files(folder.parent)
        monkeypatch.setattr(sys, "argv", ["graphcompress", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return Said(int(left.value.code or 0), captured.out, captured.err, files(folder.parent) - before)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def files(folder: Path) -> set[str]:
    """What lies below ``folder``, without what ONNX Runtime leaves in TMPDIR when it is imported."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".ses"}


# ---- models


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_a_hostile_model_is_refused_in_one_sentence(name, folder, run, tiny_bert_proto) -> None:
    change, code, words = hostile.REFUSED[name]
    model = onnx.ModelProto()
    model.CopyFrom(tiny_bert_proto)
    content = change(model, folder)
    (folder / "bad.onnx").write_bytes(model.SerializeToString() if content is None else content)
    run("optimize", "bad.onnx", "-o", "out/deep").check(code, words, "bad.onnx" if code == 5 else "")


@settings(max_examples=60)
@given(where=st.data())
def test_a_truncated_file_is_refused_or_provably_whole(where, tmp_path_factory, tiny_bert_proto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(tiny_bert_proto)
    model.metadata_props.add(key="author", value="somebody")
    content = model.SerializeToString()
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    near_the_end = st.integers(len(content) - 200, len(content) - 1)
    path.write_bytes(content[: where.draw(st.integers(0, len(content) - 1) | near_the_end)])
    try:
        loaded = Model.load(path)
    except InvalidModelError:
        return
    whole = [node.output[0] for node in model.graph.node]
    assert [node.outputs[0].name for node in loaded.graph] == whole
    assert len(list(loaded.initializers())) == len(model.graph.initializer)


@pytest.mark.parametrize("name", ["missing.onnx", "."])
def test_a_path_that_is_no_file(name, run) -> None:
    run("optimize", name, "-o", "out").check(5, name)


# ---- requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--passes", "kron,prunes"), "did you mean 'prune'"),
        (("--passes", "kron{rang=2}"), "did you mean 'rank'"),
        (("--passes", "kron{rank=0}"), "kron{rank=0}: must be at least 1"),
        (("--passes", "kron{rank=two}"), "kron{rank}: must be a whole number"),
        (("--passes", "kron{"), "expected key=value"),
        (("--passes", ""), "no passes"),
        (("--target", "cpo"), "did you mean 'cpu'"),
        (("--passes", "int8", "--allow", "kron"), "--allow kron"),
        (("--require-coverage", "1.5"), "between 0 and 1"),
    ],
)
def test_a_wrong_request_is_refused(arguments, words, run) -> None:
    run("optimize", "model.onnx", "-o", "out", *arguments).check(2, words)


def test_a_folder_that_exists_is_left_alone(folder, run) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "precious").write_text("mine")
    run("optimize", "model.onnx", "-o", "out").check(2, "out exists", "--overwrite")
    run("optimize", "model.onnx", "-o", "out", "--overwrite").check(2, "not an artifact")
    assert (folder / "out" / "precious").read_text() == "mine"


def test_an_output_below_a_file_is_refused_before_the_work(run) -> None:
    run("optimize", "model.onnx", "-o", "model.onnx/out").check(7, "is a file")


# ---- data


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"price": 1}\n', "neither the model's inputs"),
        ("b.jsonl", "not json\n", "cannot be read as .jsonl"),
        ("c.jsonl", '{"text": "x"}\n{"other": "y"}\n', "row 2"),
        ("d.jsonl", "", "no rows"),
        ("e.jsonl", '{"text": "x"}\n', "tokenizer"),
        ("f.csv", "a,b\n1,2\n3\n", "row 3 has 1 fields"),
        ("g.npz", "no archive", "cannot be read as .npz"),
        ("h.jsonl.gz", "no gzip", "cannot be read as .jsonl"),
        ("i.pdf", "x", "unknown kind of data file"),
        ("j.parquet", "x", "cannot be read as .parquet"),
        ("k.jsonl", '{"input_ids": ["a"], "attention_mask": [1], "token_type_ids": [0]}', "is not an array"),
        ("l.jsonl", '{"input_ids": [[1]], "attention_mask": [1], "token_type_ids": [0]}', "batch first"),
        (
            "m.jsonl",
            '{"input_ids": [999], "attention_mask": [1], "token_type_ids": [0]}',
            "ONNX Runtime cannot",
        ),
        (
            "n.jsonl",
            '{"input_ids": [1, 2], "attention_mask": [1], "token_type_ids": [0]}',
            "ONNX Runtime cannot",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(name, content, words, folder, run) -> None:
    (folder / name).write_text(content)
    run("optimize", "model.onnx", "-o", "out", "--data", name).check(6, words)


def write_tokenizer(path: Path, size: int) -> None:
    words = tokenizers.models.WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


def test_a_tokenizer_of_another_model_is_refused(folder, run) -> None:
    (folder / "data.jsonl").write_text('{"text": "w1 w2"}\n')
    write_tokenizer(folder / "tokenizer.json", 101)
    run("optimize", "model.onnx", "-o", "out", "--data", "data.jsonl").check(6, "101 tokens", "100 rows")


def test_texts_that_are_no_texts_are_refused(folder, run) -> None:
    (folder / "data.jsonl").write_text('{"text": "w1"}\n{"text": null}\n')
    write_tokenizer(folder / "tokenizer.json", 100)
    run("optimize", "model.onnx", "-o", "out", "--data", "data.jsonl").check(6, "row 2 is not a text")


def test_a_broken_tokenizer_is_refused(folder, run) -> None:
    (folder / "data.jsonl").write_text('{"text": "w1"}\n')
    (folder / "tokenizer.json").write_text("{}")
    run("optimize", "model.onnx", "-o", "out", "--data", "data.jsonl").check(6, "not a tokenizer.json")


# ---- the disk


def test_a_disk_that_is_full_when_the_artifact_is_written(run, monkeypatch) -> None:
    def full(folder: Path, manifest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(optimize_module, "write_manifest", full)
    run("optimize", "model.onnx", "-o", "new/out", "--passes", "simplify").check(
        7, "new/out", "No space left"
    )


def test_a_temporary_folder_that_is_full(run, monkeypatch) -> None:
    def full(self: Scratch) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(scratch, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(Scratch, "_made", full)
    run("optimize", "model.onnx", "-o", "out", "--passes", "int8").check(7, "TMPDIR", "the disk is full")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "graphcompress", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder.parent / "tmp")}


def test_a_real_limit_on_file_size(folder) -> None:
    before = files(folder.parent)
    done = subprocess.run(
        command("optimize", "model.onnx", "-o", "out", "--passes", "simplify"),
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    Said(done.returncode, done.stdout, done.stderr, files(folder.parent) - before).check(7, "File too large")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number, folder) -> None:
    (folder / "large.onnx").write_bytes(Bert(layers=6, hidden=128, ffn=512).model().SerializeToString())
    before = files(folder.parent)
    process = subprocess.Popen(
        command("optimize", "large.onnx", "-o", "out"),
        cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(folder.parent.glob("tmp/graphcompress-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], said
    assert "Traceback" not in said
    assert files(folder.parent) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_library_may_make_an_error_of_its_own_of_an_interruption(number, code, run, monkeypatch) -> None:
    def load(path: Path) -> Model:
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise SystemError("a call in C failed") from None
        raise AssertionError("the signal did not arrive")

    monkeypatch.setattr(Model, "load", load)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    said = run("inspect", "model.onnx")
    assert said.code == code
    assert (
        said.stderr == {130: "interrupted", 143: "terminated"}[code] + "; nothing half-done is left behind\n"
    )


def test_a_killed_run_leaves_no_artifact(folder) -> None:
    process = subprocess.Popen(
        command("optimize", "model.onnx", "-o", "out"), cwd=folder, env=environment(folder)
    )
    time.sleep(1.0)
    process.kill()
    process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "out").exists()


def test_an_artifact_that_is_damaged_is_refused(folder, run) -> None:
    (folder / "art").mkdir()
    (folder / "art" / "graphcompress.json").write_text(json.dumps({"recipe": "?"})[:-2])
    said = run("verify", "model.onnx", "art")
    assert said.code in (2, 5)
    said.check(said.code, "art")
