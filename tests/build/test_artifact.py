"""An artifact is there as a whole, or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphcompress.artifact.exchange import Rename, renameat2
from graphcompress.artifact.folder import (
    MANIFEST,
    check_hashes,
    file_hashes,
    read_manifest,
    refuse_existing,
    sha256,
    staged,
    write_errors,
    write_manifest,
)
from graphcompress.errors import ContractError, OutputError, UsageError


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail_half_way(output: Path, error: type[BaseException]) -> None:
    with staged(output, overwrite=True) as stage:
        (stage / "file").write_text("half")
        raise error


def test_the_folder_appears_at_the_end(tmp_path) -> None:
    with staged(tmp_path / "a" / "b" / "out") as stage:
        (stage / "file").write_text("x")
        assert not (tmp_path / "a" / "b" / "out").exists()
    assert files(tmp_path) == ["a", "a/b", "a/b/out", "a/b/out/file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_it_fails(error, tmp_path) -> None:
    with pytest.raises(error):
        fail_half_way(tmp_path / "a" / "b" / "out", error)
    assert files(tmp_path) == []


def test_folders_of_others_stay_when_it_fails(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(RuntimeError), staged(tmp_path / "a" / "out"):
        raise RuntimeError
    assert files(tmp_path) == ["a"]


def test_a_disk_error_is_an_output_error(tmp_path) -> None:
    with (
        pytest.raises(OutputError, match=r"out: could not be written \(No space left"),
        staged(tmp_path / "out"),
        write_errors(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert files(tmp_path) == []


def fill(stage: Path, text: str) -> None:
    (stage / "file").write_text(text)
    write_manifest(stage, {"text": text, "files": file_hashes(stage)})


def artifact(folder: Path, text: str, rename: Rename | None = None) -> Path:
    with staged(folder, overwrite=True, rename=rename) as stage:
        fill(stage, text)
    return folder


def no_such_call(*given: object) -> int:
    """What the exchange of names is on a file system that has none."""
    return -1


@pytest.mark.parametrize("rename", [None, no_such_call], ids=["in one step", "in three"])
def test_an_artifact_is_replaced_as_a_whole(rename, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    artifact(out, "two", rename)
    assert files(tmp_path) == ["out", "out/file", f"out/{MANIFEST}"]
    assert read_manifest(out)["text"] == "two"


@pytest.mark.skipif(renameat2() is None, reason="the system exchanges no names")
def test_there_is_an_artifact_at_every_moment(tmp_path) -> None:
    out = artifact(tmp_path / "out", "0")
    done, seen = threading.Event(), set()

    def watch() -> None:
        while not done.is_set():
            seen.add(read_manifest(out)["text"])

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch)
        for number in range(100):
            artifact(out, str(number))
        done.set()
        watching.result()
    assert len(seen) > 1


# ---- files of the user's


def add_file(out: Path) -> str:
    (out / "notes.md").write_text("mine")
    return "notes.md"


def add_below(out: Path) -> str:
    (out / "plots").mkdir()
    (out / "plots" / "a.png").write_text("mine")
    return "plots/a.png"


def change_file(out: Path) -> str:
    (out / "file").write_text("mine")
    return "file"


def link_elsewhere(out: Path) -> str:
    (out / "data").symlink_to(out.parent)
    return "data"


def replace_by_link(out: Path) -> str:
    (out / "file").rename(out.parent / "kept")
    (out / "file").symlink_to(out.parent / "kept")
    return "file"


CHANGES = (add_file, add_below, change_file, link_elsewhere, replace_by_link)


@pytest.mark.parametrize("change", CHANGES)
def test_what_no_build_wrote_is_named_before_the_work(change, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    name = change(out)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=f"holds files that no build wrote.*: {name}; move them away"):
        refuse_existing(out, overwrite=True)
    with pytest.raises(UsageError, match=name):
        artifact(out, "two")
    assert files(tmp_path) == before


@pytest.mark.parametrize("rename", [None, no_such_call], ids=["in one step", "in three"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_comes_during_the_build_is_there_afterwards(change, rename, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")

    def build() -> None:
        with staged(out, overwrite=True, rename=rename) as stage:
            fill(stage, "two")
            change(out)

    with pytest.raises(UsageError, match="no build wrote"):
        build()
    assert read_manifest(out)["text"] == "one"
    expected = artifact(tmp_path / "twin" / "out", "one")
    change(expected)
    assert files(out) == files(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["out", "twin", *(["kept"] if change is replace_by_link else [])]
    )


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_comes_during_the_build_stays(overwrite, tmp_path) -> None:
    out = tmp_path / "out"

    def build() -> None:
        with staged(out, overwrite=overwrite) as stage:
            fill(stage, "two")
            out.mkdir()
            (out / "thesis.txt").write_text("mine")

    with pytest.raises(UsageError, match=r"appeared during the build|is not an artifact"):
        build()
    assert files(tmp_path) == ["out", "out/thesis.txt"]


def test_many_files_of_the_user_are_counted(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    for number in range(7):
        (out / f"n{number}").touch()
    with pytest.raises(UsageError, match=r"n0, n1, n2, n3, n4 and 2 more; "):
        refuse_existing(out, overwrite=True)


def test_artifacts_of_several_targets_are_one(tmp_path) -> None:
    def build(text: str) -> None:
        with staged(tmp_path / "out", overwrite=True) as stage:
            for name in ("a", "b"):
                (stage / name).mkdir()
                fill(stage / name, text)
            (stage / "report.md").write_text(text)
            write_manifest(stage, {"artifacts": ["a", "b"]})

    build("one")
    build("two")
    assert read_manifest(tmp_path / "out" / "b")["text"] == "two"
    assert len(files(tmp_path)) == 9
    (tmp_path / "out" / "b" / "mine").touch()
    with pytest.raises(UsageError, match=": b/mine; "):
        build("three")


@pytest.mark.parametrize("manifest", ['{"files": {"../mine": "0"}}', '{"files": 1}', '{"artifacts": 3}'])
def test_a_manifest_that_names_other_files_deletes_none_of_them(manifest, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    (tmp_path / "mine").write_text("mine")
    (out / "file").unlink()
    (out / MANIFEST).write_text(manifest)
    artifact(out, "two")
    assert (tmp_path / "mine").read_text() == "mine"
    assert read_manifest(out)["text"] == "two"


def test_an_artifact_goes_where_a_link_points_to(tmp_path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for text in ("one", "two"):
        artifact(tmp_path / "out", text)
    assert (tmp_path / "out").is_symlink()
    assert files(tmp_path / "disk") == ["file", MANIFEST]


# ---- killed builds

KILLED = """
import os, signal, sys
from pathlib import Path
from graphcompress.artifact import folder
from graphcompress.artifact.exchange import renameat2

def exchange_and_die(*names):
    renameat2()(*names)
    os.kill(os.getpid(), signal.SIGKILL)

with folder.staged(Path(sys.argv[1]), overwrite=True, rename=exchange_and_die) as stage:
    (stage / "file").write_text("half")
    if sys.argv[2] == "during":
        os.kill(os.getpid(), signal.SIGKILL)
    folder.write_manifest(stage, {"files": folder.file_hashes(stage)})
"""


@pytest.mark.skipif(renameat2() is None, reason="the system exchanges no names")
@pytest.mark.parametrize("moment", ["during", "after the exchange"])
def test_what_a_killed_build_left_is_swept_by_the_next(moment, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert (out / "file").read_text() == ("one" if moment == "during" else "half")
    artifact(tmp_path / "other", "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_replaced_artifact_with_a_file_of_the_user_is_never_swept(tmp_path) -> None:
    left = artifact(tmp_path / "out", "one").rename(tmp_path / f".graphcompress-{'0' * 16}")
    add_file(left)
    artifact(tmp_path / "other", "two")
    assert files(left) == ["file", MANIFEST, "notes.md"]


def test_an_artifact_stays_when_its_replacement_fails(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(out, KeyboardInterrupt)
    assert read_manifest(out)["text"] == "one"
    assert files(tmp_path) == ["out", "out/file", f"out/{MANIFEST}"]


def test_an_artifact_stays_when_the_swap_is_interrupted(tmp_path, monkeypatch) -> None:
    out = artifact(tmp_path / "out", "one")
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifact(out, "two", no_such_call)
    assert read_manifest(out)["text"] == "one"
    assert files(tmp_path) == ["out", "out/file", f"out/{MANIFEST}"]


def test_an_empty_folder_may_be_filled(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    assert refuse_existing(tmp_path / "out", overwrite=False) is None
    artifact(tmp_path / "out", "one")
    assert read_manifest(tmp_path / "out")["text"] == "one"


def test_what_exists_is_refused(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    with pytest.raises(UsageError, match="--overwrite"):
        refuse_existing(out, overwrite=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="not an artifact"):
        refuse_existing(tmp_path / "mine", overwrite=True)
    with pytest.raises(UsageError, match="not an artifact"):
        refuse_existing(tmp_path / "mine" / "file", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        refuse_existing(tmp_path / "mine" / "file" / "out", overwrite=False)


@pytest.mark.parametrize("name", ["n" * 256, "a\0b", "/".join(["d" * 200] * 30)])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(name, tmp_path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        refuse_existing(tmp_path / name, overwrite=False)


def test_a_read_only_folder_is_refused_before_the_work(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="read-only"):
        refuse_existing(tmp_path / "out", overwrite=False)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_manifest_is_refused(text, tmp_path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(UsageError, match=MANIFEST):
        read_manifest(tmp_path)


def test_hashes_are_of_the_files_but_the_manifest(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    assert file_hashes(out) == {"file": sha256(out / "file")}
    assert sha256(out / "file") == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: (out / "file").write_text("two"), "file was changed"),
        (lambda out: (out / "file").unlink(), "file is missing"),
        (replace_by_link, "file was changed"),
        (lambda out: (out / MANIFEST).write_text('{"files": {"../mine": "0"}}'), "../mine is missing"),
    ],
)
def test_a_file_that_is_not_as_it_was_built_is_named(change, said, tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    (tmp_path / "mine").write_text("mine")
    (out / "beside").write_text("a file of the user")
    check_hashes(out)
    change(out)
    with pytest.raises(ContractError, match=f"out is not as it was built: {re.escape(said)}; "):
        check_hashes(out)


def test_an_artifact_without_hashes_is_not_called_whole(tmp_path) -> None:
    write_manifest(tmp_path, {"target": "cpu"})
    with pytest.raises(UsageError, match="holds no hashes of files"):
        check_hashes(tmp_path)


def test_the_same_content_gives_the_same_bytes(tmp_path) -> None:
    write_manifest(tmp_path, {"b": 1, "a": {"d": "ü", "c": None}})
    one = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, {"a": {"c": None, "d": "ü"}, "b": 1})
    assert (tmp_path / MANIFEST).read_bytes() == one
    assert json.loads(one) == {"a": {"c": None, "d": "ü"}, "b": 1}
