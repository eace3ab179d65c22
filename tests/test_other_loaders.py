"""Artifacts in other libraries: optimum's classes, and transformers.js in Node.js and Chromium.

OPTIMUM_ENVIRONMENT names an environment with optimum-onnx, TRANSFORMERS_JS a folder with transformers.js.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import bigram
import pytest
from sequence_models import VOCABULARY

from graphcompress import optimize

ENVIRONMENT = os.environ.get("OPTIMUM_ENVIRONMENT", "")
NODE = os.environ.get("TRANSFORMERS_JS", "")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "other_loaders.py"
WORDS = ("<pad>", "</s>", *(f"word{number}" for number in range(2, VOCABULARY)))


def artifact_of(source: Path, output: Path) -> Path:
    """An int8 artifact with a tokenizer of words beside it."""
    made = optimize(source, "int8", target="cpu{measure=false}", allow=("int8",), output=output).output
    bigram.tokenizer(WORDS).save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    return made


@pytest.mark.skipif(not ENVIRONMENT, reason="OPTIMUM_ENVIRONMENT names no environment with optimum-onnx")
@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_optimum_writes_the_same_from_an_artifact(
    name: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    artifact = artifact_of(sequence_folders[name], tmp_path / "out")
    given = ["--environment", ENVIRONMENT, "--text", "word5 word6 word7"]
    subprocess.run([sys.executable, SCRIPT, artifact, *given], check=True)


@pytest.mark.skipif(
    not (NODE and shutil.which("node")),
    reason="no Node.js, or TRANSFORMERS_JS names no folder with the package",
)
@pytest.mark.parametrize("name", ["t5, merged", "gpt2"])  # in the layouts of transformers.js and of optimum
def test_transformers_js_writes_the_same_from_an_artifact(
    name: str, sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    artifact = artifact_of(sequence_folders[name], tmp_path / "out")
    given = ["--node", NODE, "--text", "word5 word6 word7"]
    subprocess.run([sys.executable, SCRIPT, artifact, *given], check=True)
