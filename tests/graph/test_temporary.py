"""A folder of a killed process is found and swept; that of a living one, or of a user, is not."""

from __future__ import annotations

import gc
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from graphcompress.files.scratch import Renamed, Scratch, on_disk
from graphcompress.files.stored import IN_MEMORY_BYTES
from graphcompress.files.temporary import Temporary, sweep

HOLD = """
import sys, time
from pathlib import Path
from graphcompress.files.temporary import Temporary
folder = Temporary(Path(sys.argv[1]))
(folder.path / "weights.bin").write_bytes(b"0" * 100)
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process  # type: ignore[misc]
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_swept_and_nothing_of_a_living_one(tmp_path, holder) -> None:
    folder = Path(holder.stdout.readline().strip())
    assert folder.parent == tmp_path
    assert sweep(tmp_path) == []
    assert (folder / "weights.bin").is_file()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert sweep(tmp_path, may_go=lambda folder: False) == []
    assert sweep(tmp_path) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_user_stay_whatever_their_name(tmp_path) -> None:
    names = (
        "graphcompress-examples",
        "graphcompress-0123",
        ".graphcompress-",
        "graphcompress-0123456789abcdeg",
    )
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "graphcompress-0123456789abcdef").symlink_to(tmp_path / names[0])
    (tmp_path / "graphcompress-0123456789abcdee").write_text("a file")
    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == len(names) + 2


def test_a_place_that_is_not_there_has_nothing_to_sweep(tmp_path) -> None:
    assert sweep(tmp_path / "nowhere") == []


def fail_in(place: Path) -> None:
    with Temporary(place) as folder:
        (folder / "file").touch()
        raise RuntimeError


def test_a_folder_is_gone_at_the_end_also_after_an_error(tmp_path) -> None:
    with pytest.raises(RuntimeError):
        fail_in(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_took_its_name_stays(tmp_path) -> None:
    (tmp_path / "at").mkdir()
    temporary = Temporary(tmp_path / "at")
    temporary.path.rename(tmp_path / "artifact")
    temporary.path.mkdir()
    temporary.remove()
    assert temporary.path.is_dir()
    assert (tmp_path / "artifact").is_dir()


def test_the_weights_of_a_model_lie_in_such_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = Scratch()
    scratch.store(np.zeros(IN_MEMORY_BYTES, np.uint8))
    (folder,) = tmp_path.iterdir()
    assert sweep(tmp_path) == []
    assert folder.is_dir()
    del scratch
    assert list(tmp_path.iterdir()) == []


def test_feeds_on_disk_are_what_they_were(tmp_path, monkeypatch) -> None:
    """Each look-up maps a large array anew, small ones and texts stay; files go with the last feed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    large = np.arange(IN_MEMORY_BYTES, dtype=np.float32).reshape(2, -1)
    given = [{"large": large + number, "small": np.array(number)} for number in range(3)]
    given.append({"texts": np.array(["a"] * IN_MEMORY_BYTES, object), "none": np.zeros((0, 3), np.int64)})
    kept = on_disk(iter(given))
    for before, after in zip(given, kept, strict=True):
        assert list(after) == list(before)
        assert all(np.array_equal(after[name], array) for name, array in before.items())
        assert all(after[name].dtype == array.dtype for name, array in before.items())
    assert kept[0]["large"] is not kept[0]["large"]
    last = kept[0]
    del kept, after
    assert len(list(tmp_path.iterdir())) == 1
    del last
    assert list(tmp_path.iterdir()) == []


def test_many_feeds_on_disk_hold_no_files_open() -> None:
    """A mapping holds its file open, and a process may open a thousand or so, fewer than samples."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        feeds = on_disk({"x": np.full(IN_MEMORY_BYTES, number, np.uint16)} for number in range(300))
        renamed = [Renamed(feed, {"y": "x"}) for feed in feeds]
        assert [int(feed["y"][-1]) for feed in renamed] == list(range(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_folder_goes_when_a_signal_comes_before_anybody_has_it(tmp_path, monkeypatch):
    made = Path.mkdir

    def made_and_stopped(path, mode):
        made(path, mode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", made_and_stopped)
        with pytest.raises(KeyboardInterrupt):
            Temporary(tmp_path)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_fork_deletes_no_folder_of_the_process_that_made_it(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from graphcompress.files.temporary import Temporary\n"
        "folder = Temporary(Path(sys.argv[1])); child = os.fork()\n"
        "if not child: sys.exit()\n"
        "os.waitpid(child, 0); print(folder.path.is_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_holds_any_more_goes(tmp_path):
    Temporary(tmp_path)
    gc.collect()
    assert list(tmp_path.iterdir()) == []
