"""Attack the command line: ``python -m attack --files 300 --kills 100``."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections import Counter
from pathlib import Path

from attack.files import Attack, attacks
from attack.run import Judged, complaint, contents, forked, preload
from attack.situations import kills, situations


def main() -> int:
    """Run every kind of attack; 1 when one of them succeeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300, help="hostile files")
    parser.add_argument("--kills", type=int, default=100, help="kills at random moments")
    parser.add_argument("--situations", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    preload()
    begun, ends, failed = time.perf_counter(), Counter[tuple[str, int]](), Counter[str]()
    files = itertools.islice(attacks(arguments.seed), arguments.files)
    every = itertools.chain(
        (("files", name, lambda attack=attack: attacked(attack)) for name, attack in files),
        (("situations", *each) for each in (situations() if arguments.situations else ())),
        (("kills", *each) for each in itertools.islice(kills(arguments.seed), arguments.kills)),
    )
    for kind, name, attempt in every:
        code, found = attempt()
        ends[kind, code] += 1
        if found is not None:
            failed[kind] += 1
            print(f"{name}: {found}", flush=True)
    print(f"{ends.total()} attacks in {time.perf_counter() - begun:.0f} s: {failed.total()} succeeded")
    for kind in dict.fromkeys(kind for kind, _ in ends):
        codes = {code: count for (of, code), count in sorted(ends.items()) if of == kind}
        told = ", ".join(f"{count} × exit {code}" for code, count in codes.items())
        print(f"{kind:10} {sum(codes.values()):4}, {failed[kind]} succeeded | {told}")
    return int(bool(failed))


def attacked(attack: Attack) -> Judged:
    """What is wrong after ``attack``: how the run ended, or what it left behind."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name) / "work"
        scratch = Path(name) / "tmp"
        folder.mkdir()
        scratch.mkdir()
        given = attack(folder)
        before = contents(folder)
        ended = forked(given, folder, environment={"TMPDIR": str(scratch)})
        after = contents(folder)
        if ended.code and after != before:
            changed = sorted(set(after.items()) ^ set(before.items()))[:3]
            return ended.code, f"exit {ended.code}, and {changed} changed: {ended.err.strip()[-200:]}"
        if list(scratch.glob("graphcompress-*")):
            return ended.code, f"left {[path.name for path in scratch.iterdir()]} in TMPDIR"
        return ended.code, complaint(ended)


if __name__ == "__main__":
    raise SystemExit(main())
