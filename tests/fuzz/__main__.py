"""Run the campaign: ``python -m fuzz --seeds 0:1000``; failures are reduced and kept in ``--folder``."""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path

import onnx

from fuzz.models import case
from fuzz.oracles import COUNTED, ORACLES, OracleError, SkippedError, settled
from fuzz.reduce import reduced


def main() -> int:
    """Run every oracle on every seed; 1 when one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="first and last seed, the last one left out")
    parser.add_argument("--oracles", default=",".join(ORACLES), help="names with commas between")
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="where reduced failures are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new seed after that time")
    parser.add_argument("--as-found", action="store_true", help="failures are kept as they are, not reduced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    first, last = map(int, arguments.seeds.split(":"))
    names = arguments.oracles.split(",")
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    skipped: Counter[str] = Counter()
    begun, done = time.perf_counter(), 0
    for seed in range(first, last):
        if time.perf_counter() - begun > arguments.seconds:
            break
        done += 1
        try:
            settled(case(seed))
        except SkippedError as reason:
            skipped[str(reason).partition(":")[0]] += 1
            print(f"seed {seed} is skipped, {reason}", flush=True)
            continue
        for name in names:
            text = _failure(seed, name)
            counts[name]["holds" if text is None else text.split()[0].rstrip(":")] += 1
            if text is not None:
                print(f"seed {seed}, {name}: {text[:300]}", flush=True)
                _keep(seed, name, text, arguments.folder, as_found=arguments.as_found)
    seconds = time.perf_counter() - begun
    print(f"{done} models in {seconds:.0f} s, {sum(skipped.values())} of them skipped {dict(skipped) or ''}")
    print("\n".join(f"{name:8} {dict(count)}" for name, count in counts.items()))
    return int(any(set(count) - {"holds"} for count in counts.values()))


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
