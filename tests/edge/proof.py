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
from graphcompress.targets.mobile import Mobile

from graphcompress.edge.bundle import EXAMPLE_FILE
from graphcompress.edge.convert import OPERATORS_FILE
from graphcompress.edge.interface import Interface, read_interface

LARGEST = 1e-4
"""Share of the output range by which another machine may differ where everything is computed in float."""

LARGEST_QUANTISED = 0.05
"""… where activations are rounded to int8: a last bit can turn one rounding, and that row of the answer."""

SKIPPED = 77
"""Exit code of a proof that cannot run here."""

Feed = Mapping[str, np.ndarray]
Prove = Callable[[Path, Sequence["Case"], Path], float]


class CannotRunError(Exception):
    """Why a proof cannot run here."""


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


def allowed(artifact: Path) -> float:
    """The largest difference that still passes for ``artifact``."""
    quantised = "QuantizeLinear" in {
        name
        for line in (artifact / OPERATORS_FILE).read_text(encoding="utf-8").splitlines()
        for name in line.rpartition(";")[2].split(",")
    }
    return LARGEST_QUANTISED if quantised else LARGEST


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


def largest_difference(expected: Feed, seen: Feed) -> float:
    """Share of the output range by which ``seen`` differs; infinite when something is missing."""
    error, peak = 0.0, 1e-30
    for name, array in expected.items():
        if name not in seen or seen[name].shape != array.shape:
            return float("inf")
        here = float(np.max(np.abs(seen[name].astype(np.float64) - array), initial=0.0))
        error = max(error, here if np.isfinite(here) else float("inf"))
        peak = max(peak, float(np.max(np.abs(array), initial=0.0)))
    return error / peak


def cache_folder() -> Path:
    """Where installed things are kept: ``$GRAPHCOMPRESS_PROOFS_CACHE``, by default in the user cache."""
    given = os.environ.get("GRAPHCOMPRESS_PROOFS_CACHE")
    folder = Path(given) if given else Path.home() / ".cache" / "graphcompress" / "proofs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def command(*words: str | Path, timeout: float = 300, **options: object) -> str:
    """Run a program and return what it printed.

    Raises:
        CannotRunError: it is not there, takes too long or fails.
    """
    if shutil.which(str(words[0])) is None:
        raise CannotRunError(f"{words[0]} is not installed")
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(word) for word in words], capture_output=True, text=True, timeout=timeout, **options
        )
    except subprocess.TimeoutExpired as error:
        raise CannotRunError(f"{words[0]} took longer than {timeout:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise CannotRunError(f"{' '.join(map(str, words[:3]))} failed: {said}")
    return str(done.stdout)


def main(prove: Prove, text: str) -> None:
    """The command line of one proof: artifact in, largest difference and time out."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("artifact", type=Path, help="folder that the target mobile wrote")
    artifact = parser.parse_args().artifact.resolve()
    try:
        installed = time.monotonic()
        found = prove(artifact, cases(artifact), cache_folder())
    except CannotRunError as error:
        sys.stdout.write(f"skipped: {error}\n")
        sys.exit(SKIPPED)
    seconds = time.monotonic() - installed
    sys.stdout.write(f"largest difference {found:.2e} of the output range, {seconds:.1f} s\n")
    sys.exit(0 if found <= allowed(artifact) else 1)


def _plain(arrays: Feed) -> dict[str, dict[str, object]]:
    return {
        name: {"type": str(array.dtype), "dims": list(array.shape), "data": array.reshape(-1).tolist()}
        for name, array in arrays.items()
    }
