"""Kills at random moments, and environments in which a build has to work or to say why not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bert import Bert

from attack.read_back import OPTIMIZE
from attack.run import Ended, Judged, complaint, contents, forked, run

Attempt = Callable[[], Judged]
"""Runs something and says what is wrong afterwards, or nothing."""

PRECIOUS = {"out.training/thesis.txt": "mine", "notes.txt": "mine, too"}
"""Files of the user's beside the output: no run may touch them."""


LONGEST_S = 4.0
"""So many seconds a build may be under way when it is killed; some are done by then."""


def kills(seed: int) -> Iterator[tuple[str, Attempt]]:
    """Builds that are killed at random moments; the next one finds nothing in its way and sweeps."""
    rng = random.Random(seed)
    while True:
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        moment = rng.uniform(0.02, LONGEST_S)
        yield (
            f"{number.name} after {moment:.1f} s",
            lambda number=number, moment=moment: _killed(moment, number),
        )


def _killed(moment: float, number: signal.Signals) -> Judged:
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder, environment = _prepared(Path(name))
        before = contents(folder)
        ended = forked(
            _int8(), folder, environment=environment, kill=(lambda passed: passed > moment, number)
        )
        return ended.code, _lost_or_left(Path(name), ended, number, before, environment)


def _lost_or_left(
    parent: Path,
    ended: Ended,
    number: signal.Signals,
    before: dict[str, str],
    environment: dict[str, str | None],
) -> str | None:
    """What is gone after a kill, or lies there after a build that came next."""
    folder = parent / "work"
    after = contents(folder)
    whole = "out/graphcompress.json" in after
    lost = {path for path, content in before.items() if after.get(path) != content}
    if lost:
        return f"{sorted(lost)} are gone or changed"
    # Before the command line listens, the system ends it: a shell calls that 143 as well.
    if number == signal.SIGTERM and ended.code not in (0, 143, -signal.SIGTERM):
        return f"exit {ended.code} after SIGTERM: {ended.err.strip()[-300:]}"
    if number == signal.SIGTERM and not whole and after != before:
        return f"{sorted(set(after) - set(before))} are left after SIGTERM"
    again = forked([*_int8(), "--overwrite"] if whole else _int8(), folder, environment=environment)
    left = {path for path in contents(folder) if path not in before and path.partition("/")[0] != "out"}
    scratch = [path.name for path in (parent / "tmp").glob("graphcompress-*")]
    if again.code:
        return f"the next build ends with {again.code}: {again.err.strip()[-150:]}"
    return f"{sorted(left)} and {scratch} are left by both" if left or scratch else None


def _int8() -> list[str]:
    return [argument if argument != "simplify" else "simplify,int8" for argument in OPTIMIZE]


def _prepared(parent: Path) -> tuple[Path, dict[str, str | None]]:
    folder = parent / "work"
    folder.mkdir()
    (parent / "tmp").mkdir()
    (folder / "model.onnx").write_bytes(Bert(layers=2).model().SerializeToString())
    for path, text in PRECIOUS.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return folder, {"TMPDIR": str(parent / "tmp")}


def situations() -> Iterator[tuple[str, Attempt]]:
    """Each environment once."""
    for name, situation in _SITUATIONS.items():
        yield name, lambda situation=situation: _in(situation)


Situation = Callable[[Path, dict[str, str | None]], Ended]


def _in(situation: Situation) -> Judged:
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder, environment = _prepared(Path(name))
        ended = situation(folder, environment)
        return ended.code, _wrong_in(folder, ended)


def _wrong_in(folder: Path, ended: Ended) -> str | None:
    for path, text in PRECIOUS.items():
        if folder.exists() and (folder / path).read_text() != text:
            return f"{path} is lost"
    if ended.code == 0 and folder.exists() and not list(folder.rglob("*/model.onnx")):
        return "exit 0, and nothing was written"
    return complaint(ended)


def _with(**variables: str | None) -> Situation:
    return lambda folder, environment: run(OPTIMIZE, folder, environment={**environment, **variables})


def _pod(rank: int) -> dict[str, str]:
    """What an operator of a cluster sets in each pod of a job, whether or not its command is torchrun."""
    return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def _alone(folder: Path, environment: dict[str, str | None]) -> Ended:
    kept = ("PYTHONPATH", "LD_LIBRARY_PATH")
    gone = dict.fromkeys(name for name in os.environ if name not in kept)
    return run(OPTIMIZE, folder, environment={**gone, **environment})


def _closed_stdout(folder: Path, environment: dict[str, str | None]) -> Ended:
    return run(OPTIMIZE, folder, environment=environment, before=lambda: os.close(1))


def _full_stdout(folder: Path, environment: dict[str, str | None]) -> Ended:
    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)

    return run(OPTIMIZE, folder, environment=environment, before=full)


def _folder_gone(folder: Path, environment: dict[str, str | None]) -> Ended:
    model = folder.parent / "model.onnx"
    shutil.move(folder / "model.onnx", model)
    arguments = [str(model) if argument == "model.onnx" else argument for argument in OPTIMIZE]
    return run(arguments, folder, environment=environment, before=lambda: shutil.rmtree(folder))


def _read_only(folder: Path, environment: dict[str, str | None]) -> Ended:
    place = folder / "sealed"
    place.mkdir()
    place.chmod(0o555)
    return run([*OPTIMIZE[:-1], "sealed/out"], folder, environment=environment)


def _long_name(folder: Path, environment: dict[str, str | None]) -> Ended:
    return run([*OPTIMIZE[:-1], "x" * 300], folder, environment=environment)


_SITUATIONS: dict[str, Situation] = {
    "no HOME": _with(HOME=None, XDG_CACHE_HOME=None),
    "HOME that is not there": _with(HOME="/nonexistent", XDG_CACHE_HOME=None),
    "RANK without a process group": _with(RANK="1"),
    "RANK and WORLD_SIZE without an address": _with(RANK="1", WORLD_SIZE="2"),
    "a pod that is the first of a group": _with(**_pod(0)),
    "a pod that is the second of a group": _with(**_pod(1)),
    "a RANK that is no number": _with(RANK="x", WORLD_SIZE="y", MASTER_ADDR="127.0.0.1"),
    "a cache that is a file": _with(XDG_CACHE_HOME="/dev/null"),
    "no PATH": _with(PATH=None),
    "a terminal of no width": _with(COLUMNS="0", TERM="dumb"),
    "all variables gone": _alone,
    "ascii": _with(PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
    "cp1252": _with(PYTHONIOENCODING="cp1252"),
    "a locale that is not there": _with(LC_ALL="xx_XX", LANG="xx_XX"),
    "TMPDIR that is not there": _with(TMPDIR="/nonexistent"),
    "closed stdout": _closed_stdout,
    "full stdout": _full_stdout,
    "a working folder that is gone": _folder_gone,
    "a folder that may not be written": _read_only,
    "a name that is too long": _long_name,
}
