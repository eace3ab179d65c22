"""Artifacts in optimum's own classes, where OPTIMUM_ENVIRONMENT names an environment that has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bigram
import pytest
from sequence_models import VOCABULARY

from graphcompress import optimize

ENVIRONMENT = os.environ.get("OPTIMUM_ENVIRONMENT", "")


@pytest.mark.skipif(not ENVIRONMENT, reason="OPTIMUM_ENVIRONMENT names no environment with optimum-onnx")
@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_optimum_writes_the_same_from_an_artifact(
    name: str, sequence_folders: dict[str, Path], tmp_path: Path
) -> None:
    artifact = optimize(
        sequence_folders[name], "int8", target="cpu{measure=false}", allow=("int8",), output=tmp_path / "out"
    ).output
    words = ("<pad>", "</s>", *(f"word{number}" for number in range(2, VOCABULARY)))
    bigram.tokenizer(words).save(str(artifact / "tokenizer.json"))
    script = Path(__file__).parents[1] / "benchmarks" / "other_loaders.py"
    given = ["--environment", ENVIRONMENT, "--text", "word5 word6 word7"]
    subprocess.run([sys.executable, script, artifact, *given], check=True)
