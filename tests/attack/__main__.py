"""Attack the command line: ``python -m attack --files 300 --kills 100``."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from attack.files import Attack, attacks
from attack.run import complaint, contents, run
from attack.situations import kills, situations


def main() -> int:
    """Run every kind of attack; 1 when one of them succeeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300, help="hostile files")
    parser.add_argument("--kills", type=int, default=100, help="kills at random moments")
    parser.add_argument("--situations", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begun, failed, tried = time.perf_counter(), 0, 0
    files = itertools.islice(attacks(arguments.seed), arguments.files)
    every = itertools.chain(
        ((name, lambda attack=attack: attacked(attack)) for name, attack in files),
        situations() if arguments.situations else (),
        itertools.islice(kills(arguments.seed), arguments.kills),
    )
    for name, attempt in every:
        tried += 1
        found = attempt()
        if found is not None:
            failed += 1
            print(f"{name}: {found}", flush=True)
    print(f"{tried} attacks in {time.perf_counter() - begun:.0f} s: {failed} succeeded")
    return int(failed > 0)


def attacked(attack: Attack) -> str | None:
    """What is wrong after ``attack``: how the run ended, or what it left behind."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name) / "work"
        scratch = Path(name) / "tmp"
        folder.mkdir()
        scratch.mkdir()
        given = attack(folder)
        before = contents(folder)
        ended = run(given, folder, environment={"TMPDIR": str(scratch)})
        after = contents(folder)
        if ended.code and after != before:
            return f"exit {ended.code}, and {sorted(set(after.items()) ^ set(before.items()))[:3]} changed"
        if list(scratch.glob("graphcompress-*")):
            return f"left {[path.name for path in scratch.iterdir()]} in TMPDIR"
        return complaint(ended)


if __name__ == "__main__":
    raise SystemExit(main())
