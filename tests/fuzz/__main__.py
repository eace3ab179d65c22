"""Run the campaign: ``python -m fuzz --seeds 0:1000``; failures are reduced and kept in ``--folder``.

Every model is simplified and compared with its file on ONNX Runtime. The other oracles cost more, so that one
in a few models meets each of them (``EVERY``); with ``--oracles`` every model meets those that are named.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx

from fuzz.models import case
from fuzz.oracles import COUNTED, EVERY, ORACLES, OracleError, SkippedError, settled
from fuzz.reduce import reduced
from graphcompress.graph import runner


def main() -> int:
    """Run the oracles on every seed; 1 when one of them fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="0:1000", help="first and last seed, the last one left out")
    parser.add_argument("--oracles", help="names with commas between, for every seed")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="where reduced failures are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new seed after that time")
    parser.add_argument("--as-found", action="store_true", help="failures are kept as they are, not reduced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    # Graphs this small gain nothing from several threads, which take turns on a machine that others use, too.
    runner.session_of = functools.partial(runner.session_of, threads=1)
    first, last = map(int, arguments.seeds.split(":"))
    every = dict.fromkeys(arguments.oracles.split(","), 1) if arguments.oracles else EVERY
    counts: dict[str, Counter[str]] = {name: Counter() for name in every}
    skipped: Counter[str] = Counter()
    cuts = 0
    begun, done = time.perf_counter(), 0
    for seed in range(first, last):
        if time.perf_counter() - begun > arguments.seconds:
            break
        done += 1
        try:
            model = settled(case(seed))
        except SkippedError as reason:
            skipped[str(reason).partition(":")[0]] += 1
            print(f"seed {seed} is skipped, {reason}", flush=True)
            continue
        for number, name in enumerate(every):
            if (seed + number) % every[name]:
                continue
            text = _failure(seed, name)
            cuts += len(model.units) if name == "dead" else 0
            counts[name]["holds" if text is None else text.split()[0].rstrip(":")] += 1
            if text is not None:
                print(f"seed {seed}, {name}: {text[:300]}", flush=True)
                _keep(seed, name, text, arguments.folder, as_found=arguments.as_found)
        if done % 100 == 0:
            _tell(done, time.perf_counter() - begun, skipped, counts, cuts)
    _tell(done, time.perf_counter() - begun, skipped, counts, cuts)
    return int(any(set(count) - {"holds"} for count in counts.values()))


def _tell(
    done: int,
    seconds: float,
    skipped: Mapping[str, int],
    counts: Mapping[str, Mapping[str, int]],
    cuts: int,
) -> None:
    """Print what was counted so far."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    print(f"{done} models in {seconds:.0f} s ({left_out or 'none skipped'}), {cuts} cuts of dead units")
    for name, count in counts.items():
        print(f"{name:8}", ", ".join(f"{times} {how}" for how, times in count.items()), flush=True)


def _failure(seed: int, oracle: str) -> str | None:
    """How ``oracle`` fails on the model of ``seed``, or None."""
    try:
        (ORACLES | COUNTED)[oracle](case(seed))
    except OracleError as failure:
        return str(failure)
    return None


def _keep(seed: int, oracle: str, text: str, folder: Path, *, as_found: bool) -> None:
    """Write the smallest model that still fails in the same way, and the failure."""
    small = case(seed) if as_found else reduced(case(seed), (ORACLES | COUNTED)[oracle])
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{oracle}-{seed}"
    onnx.save(small.model, f"{stem}.onnx")
    (folder / f"{oracle}-{seed}.txt").write_text(
        f"{text}\n\n{onnx.printer.to_text(small.model)}\n", encoding="utf-8"
    )
    print(f"  {len(small.model.graph.node)} nodes left in {stem}.onnx", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
