"""The page beside an engine names the files, the shapes and the calls of TensorRT."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from graphcompress import optimize
from graphcompress.data.samples import Samples
from graphcompress.reporting.loading import usage
from graphcompress.targets.nvidia.readme import readme

PHASES = {
    "prefill": {"ids": [[1, 1], [1, 128], [8, 512]], "past": [[1, 0], [1, 0], [8, 0]]},
    "steps": {"ids": [[1, 1], [1, 1], [8, 1]], "past": [[1, 1], [1, 127], [8, 511]]},
}


def test_the_page_has_a_profile_for_each_phase() -> None:
    page = readme(PHASES, [], "fp16", [])
    assert (
        " \\\n  --profile=0 \\\n  --minShapes=ids:1x1,past:1x0 \\\n  --optShapes=ids:1x128,past:1x0"
        " \\\n  --maxShapes=ids:8x512,past:8x0 \\\n  --profile=1 \\\n  --minShapes=ids:1x1,past:1x1"
        " \\\n  --optShapes=ids:1x1,past:1x127 \\\n  --maxShapes=ids:8x1,past:8x511\n"
    ) in page
    assert "--loadEngine=model.engine --shapes=ids:1x1,past:1x127 --useProfile=1\n" in page
    assert "def run(feed, profile):" in page
    assert "    # profile 0: prefill, profile 1: steps\n" in page


def test_the_page_has_the_shapes_of_the_profile() -> None:
    page = readme({"all": {"ids": [[1, 1], [1, 128], [8, 512]]}}, ["ids INT64 [batch,length]"], "fp16", [])
    assert "--minShapes=ids:1x1 \\\n  --optShapes=ids:1x128 \\\n  --maxShapes=ids:8x512\n" in page
    assert "--loadEngine=model.engine --shapes=ids:1x128\n" in page
    assert "No engine was compiled here" in page
    fixed = readme({}, ["ids INT64 [1,128]"], "fp32", ["model-sm89.engine"])
    assert "Shapes=" not in fixed
    assert "No engine" not in fixed
    assert "else fp32" in fixed


def test_the_lines_of_python_read() -> None:
    pages = readme({}, [], "fp16", []) + readme(PHASES, [], "fp16", [])
    for code in re.findall(r"```python\n(.*?)```", pages, re.DOTALL):
        assert isinstance(ast.parse(code), ast.Module)
        assert "{{" not in code


def test_an_artifact_has_it(tiny_bert_path: Path, tiny_samples: Samples, tmp_path: Path) -> None:
    build = optimize(
        tiny_bert_path, "int8", data=tiny_samples, target="tensorrt{build=never}", output=tmp_path / "trt"
    )
    page = (build.output / "README.md").read_text(encoding="utf-8")
    assert "--optShapes=input_ids:1x64,attention_mask:1x64,token_type_ids:1x64" in page
    assert usage(build.lowered[0], 100)[-1] == "session = engine.create_execution_context()"
