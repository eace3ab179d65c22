"""Where the time of a run goes: milliseconds of every operator, by ONNX Runtime's own profiler."""

from __future__ import annotations

import bisect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphcompress.files.runtime import Feed, session_of
from graphcompress.files.temporary import Temporary
from graphcompress.measure.timing import PROFILED_RUNS


def operator_ms(path: Path, feed: Feed, *, runs: int = PROFILED_RUNS) -> dict[str, float]:
    """Operator, as the runtime executes it → milliseconds in the fastest of ``runs``, the largest first.

    The profile is written below the temporary folder, and is gone afterwards.
    """
    with Temporary() as folder:
        session = session_of(path, profile=folder / "profile")
        for _ in range(1 + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    fastest = min(us_of_operators(events)[1:], key=Counter.total)  # the first run also allocates
    return {operator: us / 1000.0 for operator, us in fastest.most_common()}


def us_of_operators(events: Sequence[Mapping[str, Any]]) -> list[Counter[str]]:
    """Operator → microseconds for every run in the ``events`` of the profiler, in the order of the runs."""
    begins = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    runs: list[Counter[str]] = [Counter() for _ in begins]
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and operator:
            runs[bisect.bisect_right(begins, event["ts"]) - 1][operator] += event["dur"]
    return runs
