"""The examples run: the script, and the cells of the notebook one after the other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "checkpoint_to_artifact.ipynb"


def imported(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_compresses_and_asks(
    tiny_bert_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = imported("python_api")
    build = script.compress(tiny_bert_path, tmp_path / "small")
    script.question(tiny_bert_path, tmp_path / "small")
    said = capsys.readouterr().out
    assert said.startswith("model.onnx → simplify,int8 → cpu\n")
    assert f"{len(build.before_anatomy.weights)} weights, 2 blocks, 22,470 parameters\n" in said


@pytest.mark.slow
def test_the_notebook_goes_from_a_checkpoint_to_an_artifact() -> None:
    pytest.importorskip("transformers")
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    named: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        assert cell.get("outputs", []) == [], "clear the outputs before committing"
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), named)
    report = named["report"]
    assert [record["text"].partition("{")[0] for record in report.manifest["passes"]] == [  # type: ignore[attr-defined]
        "simplify",
        "prune",
        "distill",
        "int8",
    ]
    (points,) = report.manifest["passes"][2]["curves"].values()  # type: ignore[attr-defined]
    assert [step for step, _ in points] == sorted(step for step, _ in points)
    assert points[0][0] == 0
    assert 'aria-label="agreement with the original while training"' in report.html  # type: ignore[attr-defined]
    assert named["artifact"].score.value > 0.8  # type: ignore[attr-defined]
