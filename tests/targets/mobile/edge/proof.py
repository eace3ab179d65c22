"""What the proofs share: a cache folder, the reason why one cannot run, cases with this machine's answers."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from graphcompress.artifact.folder import MANIFEST
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.targets.mobile.bundle import EXAMPLE_FILE
from graphcompress.targets.mobile.interface import Interface, read_interface
from graphcompress.targets.mobile.mobile import Mobile
from graphcompress.targets.mobile.ort_format import OPERATORS_FILE

FLOAT_DB = 100.0
"""SQNR between two machines where everything is computed in float: the last bits of float32."""

MARGIN_DB = 6.0
"""Where activations are rounded to int8, a last bit can turn a rounding, and what follows moves with it. What
that adds must stay below a quarter (6 dB) of the noise that quantising the model made in the first place."""

HALF_A_STEP = 0.5 / 255
"""… and the median entry must move by less than half an int8 step of the output's range."""

SKIPPED = 77
"""Exit code of a proof that cannot run here."""

Feed = Mapping[str, np.ndarray]
Prove = Callable[[Path, Sequence["Case"], Path], Sequence[Feed]]
"""(artifact, cases, cache folder) → what the other machine answers to each case."""


class CannotRunError(Exception):
    """Why a proof cannot run here."""


class NotProvenError(AssertionError):
    """A proof ran, and what it was to prove does not hold."""


@dataclass(frozen=True)
class Case:
    """Inputs, and what this machine answers."""

    inputs: Feed
    outputs: Feed

    def write(self, path: Path) -> None:
        """Write the case in the form of the bundle's ``example.json``."""
        content = {"inputs": _plain(self.inputs), "outputs": _plain(self.outputs)}
        path.write_text(json.dumps(content), encoding="utf-8")


def cases(artifact: Path, count: int = 2, seed: int = 0) -> list[Case]:
    """Made-up inputs and the bundle's example, with the answers of the artifact on this machine."""
    interface, run = read_interface(artifact), Mobile().session(artifact)
    rng = np.random.default_rng(seed)
    feeds = [_feed(interface, length, rng) for length in (16, 5)[:count]]
    example = artifact / EXAMPLE_FILE
    if example.is_file():
        given = json.loads(example.read_text(encoding="utf-8"))["inputs"].items()
        feeds.append({name: np.array(it["data"], it["type"]).reshape(it["dims"]) for name, it in given})
    return [Case(feed, run(feed)) for feed in feeds]


@dataclass(frozen=True)
class Agreement:
    """How near the answers of two machines are.

    Attributes:
        sqnr_db: power of this machine's answers over that of the difference; 0 where something is missing.
        median: half of all entries differ by less than this share of the output range.
        largest: no entry differs by more.
        wanted_db: least SQNR that passes.
    """

    sqnr_db: float
    median: float
    largest: float
    wanted_db: float

    @property
    def passes(self) -> bool:
        """Whether the other machine answers the same, as far as arithmetic lets it."""
        return self.sqnr_db >= self.wanted_db and self.median <= HALF_A_STEP

    def __str__(self) -> str:
        return (
            f"SQNR {self.sqnr_db:.1f} dB (at least {self.wanted_db:.1f}), median difference "
            f"{self.median:.1e} of the output range (at most {HALF_A_STEP:.1e}), largest {self.largest:.1e}"
        )


def agreement(artifact: Path, given: Sequence[Case], seen: Sequence[Feed]) -> Agreement:
    """Compare this machine's answers to ``given`` with those ``seen`` on another."""
    wanted = _wanted_db(artifact)
    here, there = [], []
    for case, answer in zip(given, seen, strict=True):
        for name, array in case.outputs.items():
            if name not in answer or np.shape(answer[name]) != array.shape:
                return Agreement(0.0, float("inf"), float("inf"), wanted)
            here.append(array.astype(np.float64).reshape(-1))
            there.append(np.asarray(answer[name], np.float64).reshape(-1))
    difference = np.abs(np.concatenate(here) - np.concatenate(there))
    if not np.isfinite(difference).all():
        return Agreement(0.0, float("inf"), float("inf"), wanted)
    extent = float(np.ptp(np.concatenate(here))) or 1.0
    figure = sqnr_db(np.concatenate(here), np.concatenate(there))
    return Agreement(figure, float(np.median(difference)) / extent, float(difference.max()) / extent, wanted)


def _wanted_db(artifact: Path) -> float:
    if not _rounds_activations(artifact):
        return FLOAT_DB
    record = json.loads((artifact / MANIFEST).read_text(encoding="utf-8"))
    return float(record["verification"]["artifact"]["sqnr_db"]) + MARGIN_DB


def _rounds_activations(artifact: Path) -> bool:
    return not {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"}.isdisjoint(
        name
        for line in (artifact / OPERATORS_FILE).read_text(encoding="utf-8").splitlines()
        for name in line.rpartition(";")[2].split(",")
    )


def _feed(interface: Interface, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    feed = {}
    for port in interface.inputs:
        limits = port.fixed or (length,) * len(port.sizes)
        shape = [
            size if isinstance(size, int) else 1 if axis == 0 else min(length, limits[axis])
            for axis, size in enumerate(port.sizes)
        ]
        if port.type.startswith("float"):
            feed[port.name] = rng.standard_normal(shape).astype(port.type)
        elif "mask" in port.name:
            feed[port.name] = np.ones(shape, port.type)
        else:
            feed[port.name] = rng.integers(0, 2 if "type" in port.name else 40, shape).astype(port.type)
    return feed


def read_answers(text: str) -> list[dict[str, np.ndarray]]:
    """Answers that a program in JavaScript printed: for each case, output → sizes and numbers."""
    return [
        {name: np.array(it["data"], np.float64).reshape(it["dims"]) for name, it in answer.items()}
        for answer in json.loads(text)
    ]


def cache_folder() -> Path:
    """Where installed things are kept: ``$GRAPHCOMPRESS_PROOFS_CACHE``, by default in the user cache."""
    given = os.environ.get("GRAPHCOMPRESS_PROOFS_CACHE")
    folder = Path(given) if given else Path.home() / ".cache" / "graphcompress" / "proofs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def command(*words: str | Path, timeout: float = 300, **options: object) -> str:
    """Run a program that installs something, and return what it printed.

    Raises:
        CannotRunError: it is not there, takes too long or fails.
    """
    return _printed(CannotRunError, *words, timeout=timeout, **options)


def proof(*words: str | Path, timeout: float = 300, **options: object) -> str:
    """Run a program that is a proof itself, and return what it printed.

    Raises:
        CannotRunError: it is not there.
        NotProvenError: it takes too long or fails, which is no reason to skip it.
    """
    return _printed(NotProvenError, *words, timeout=timeout, **options)


def _printed(wrong: type[Exception], *words: str | Path, timeout: float, **options: object) -> str:
    if shutil.which(str(words[0])) is None:
        raise CannotRunError(f"{words[0]} is not installed")
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(word) for word in words], capture_output=True, text=True, timeout=timeout, **options
        )
    except subprocess.TimeoutExpired as error:
        raise wrong(f"{words[0]} took longer than {timeout:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise wrong(f"{' '.join(map(str, words[:3]))} failed: {_telling(said)}")
    return str(done.stdout)


def _telling(lines: Sequence[str]) -> str:
    """The first line that calls itself an error; otherwise the last."""
    return next((line for line in lines if "error:" in line.lower()), lines[-1])


def main(prove: Prove, text: str) -> None:
    """The command line of one proof: artifact in, agreement and time out."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("artifact", type=Path, help="folder that the target mobile wrote")
    artifact = parser.parse_args().artifact.resolve()
    try:
        started, given = time.monotonic(), cases(artifact)
        found = agreement(artifact, given, prove(artifact, given, cache_folder()))
    except CannotRunError as error:
        sys.stdout.write(f"skipped: {error}\n")
        sys.exit(SKIPPED)
    except NotProvenError as error:
        sys.stdout.write(f"fails: {error}\n")
        sys.exit(1)
    sys.stdout.write(f"{found}, {time.monotonic() - started:.1f} s\n")
    sys.exit(0 if found.passes else 1)


def _plain(arrays: Feed) -> dict[str, dict[str, object]]:
    return {
        name: {"type": str(array.dtype), "dims": list(array.shape), "data": array.reshape(-1).tolist()}
        for name, array in arrays.items()
    }
