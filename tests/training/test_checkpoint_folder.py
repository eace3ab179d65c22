"""Beside an artifact, what no training wrote is never deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphcompress import optimize
from graphcompress.errors import TrainingError, UsageError
from graphcompress.training.checkpoint_folder import checkpoint_name, refuse_other_files, remove_checkpoints

CHECKPOINT = checkpoint_name("0123456789abcdef" * 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out.training"
    made.mkdir()
    (made / CHECKPOINT).touch()
    return made


def test_checkpoints_are_ours(folder: Path) -> None:
    (folder / CHECKPOINT).with_suffix(".part").touch()
    refuse_other_files(folder)
    remove_checkpoints(folder)
    assert not folder.exists()


def test_no_folder_is_no_obstacle(tmp_path: Path) -> None:
    refuse_other_files(tmp_path / "out.training")
    remove_checkpoints(tmp_path / "out.training")


@pytest.mark.parametrize("name", ["corpus.txt", "model.pt", "0123456789ABCDEF.pt", "0123456789abcdef.pt.bak"])
def test_other_files_are_named_and_stay(name: str, folder: Path) -> None:
    (folder / name).touch()
    with pytest.raises(UsageError, match=f"holds {name}, which no training wrote"):
        refuse_other_files(folder)
    remove_checkpoints(folder)
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out.training").touch()
    with pytest.raises(UsageError, match=r"holds out\.training"):
        refuse_other_files(tmp_path / "out.training")


def test_a_build_that_trains_nothing_touches_no_folder_of_checkpoints(
    folder: Path, tiny_bert_path: Path
) -> None:
    (folder / "corpus.txt").write_text("thesis")
    optimize(tiny_bert_path, "simplify", target="cpu{measure=false}", output=folder.with_suffix(""))
    assert sorted(path.name for path in folder.iterdir()) == sorted([CHECKPOINT, "corpus.txt"])


def test_a_build_that_trains_refuses_a_folder_of_the_user(
    folder: Path, tiny_bert_path: Path, tmp_path: Path
) -> None:
    (folder / "corpus.txt").write_text("thesis")
    with pytest.raises(UsageError, match=r"corpus\.txt"):
        optimize(tiny_bert_path, "distill", train=tmp_path / "none.jsonl", output=folder.with_suffix(""))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.training"]


@pytest.mark.parametrize("damage", ["a weight", "the end", "all"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from graphcompress.training.checkpoints import Checkpoints

    checkpoints = Checkpoints(tmp_path, "0123456789abcdef")
    checkpoints.write({"step": 3, "weight": torch.ones(500)})
    assert checkpoints.read()["step"] == 3
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    ones = content.index(torch.ones(500).numpy().tobytes())
    changed = {
        "a weight": content[:ones] + b"\x01" + content[ones + 1 :],
        "the end": content[:-300],
        "all": b"x" * 99,
    }
    path.write_bytes(changed[damage])
    with pytest.raises(TrainingError, match=r"is damaged .*delete it to train from the start"):
        checkpoints.read()
