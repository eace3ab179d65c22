"""An artifact is there as a whole, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from graphcompress.build.folder import (
    MANIFEST,
    file_hashes,
    read_manifest,
    refuse_existing,
    sha256,
    staged,
    write_manifest,
)
from graphcompress.errors import OutputError, UsageError


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
    ):
        raise OSError(28, "No space left on device")
    assert files(tmp_path) == []


def artifact(folder: Path, text: str) -> Path:
    with staged(folder, overwrite=True) as stage:
        (stage / "file").write_text(text)
        write_manifest(stage, {"text": text})
    return folder


def test_an_artifact_is_replaced_as_a_whole(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    (out / "stray").write_text("old")
    artifact(out, "two")
    assert files(tmp_path) == ["out", "out/file", f"out/{MANIFEST}"]
    assert read_manifest(out) == {"text": "two"}


def test_an_artifact_stays_when_its_replacement_fails(tmp_path) -> None:
    out = artifact(tmp_path / "out", "one")
    with pytest.raises(KeyboardInterrupt):
        fail_half_way(out, KeyboardInterrupt)
    assert read_manifest(out) == {"text": "one"}
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
        artifact(out, "two")
    assert read_manifest(out) == {"text": "one"}
    assert files(tmp_path) == ["out", "out/file", f"out/{MANIFEST}"]


def test_an_empty_folder_may_be_filled(tmp_path) -> None:
    (tmp_path / "out").mkdir()
    assert refuse_existing(tmp_path / "out", overwrite=False) is None
    artifact(tmp_path / "out", "one")
    assert read_manifest(tmp_path / "out") == {"text": "one"}


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


def test_the_same_content_gives_the_same_bytes(tmp_path) -> None:
    write_manifest(tmp_path, {"b": 1, "a": {"d": "ü", "c": None}})
    one = (tmp_path / MANIFEST).read_bytes()
    write_manifest(tmp_path, {"a": {"c": None, "d": "ü"}, "b": 1})
    assert (tmp_path / MANIFEST).read_bytes() == one
    assert json.loads(one) == {"a": {"c": None, "d": "ü"}, "b": 1}
