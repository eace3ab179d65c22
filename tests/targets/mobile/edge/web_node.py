"""The bundle's loading code in Node.js with onnxruntime-web, against this machine's answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge.proof import Case, Feed, main, proof, read_answers
from edge.web import PACKAGE, installed_web


def prove(artifact: Path, given: Sequence[Case], cache: Path) -> Sequence[Feed]:
    """What Node.js answers to each case."""
    library = installed_web(cache) / "node_modules" / PACKAGE / "dist" / "ort.node.min.mjs"
    with tempfile.TemporaryDirectory() as folder:
        names = [Path(folder) / f"case{number}.json" for number in range(len(given))]
        for name, case in zip(names, given, strict=True):
            case.write(name)
        script = Path(__file__).with_name("web_node.mjs")
        return read_answers(proof("node", script, library, artifact, *names).splitlines()[-1])


if __name__ == "__main__":
    main(prove, __doc__ or "")
