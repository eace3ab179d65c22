"""What people type who know other tools: each mistake gets one sentence with what to type instead."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import run

MODEL = ("optimize", "model.onnx")

MISTAKES: list[tuple[tuple[str, ...], int, str]] = [
    # passes by other names, and things that are no passes
    ((*MODEL, "--passes", "quantize"), 2, "write --passes int8"),
    ((*MODEL, "--passes", "simplify,quantise"), 2, "write --passes int8"),
    ((*MODEL, "--passes", "fp16"), 2, "write --target 'cpu{float_storage=fp16}' or --target 'tensorrt{"),
    ((*MODEL, "--passes", "int4"), 2, "write --passes int8, the fewest bits that there are"),
    ((*MODEL, "--passes", "dynamic"), 2, "write --passes 'int8{scheme=dynamic}'"),
    ((*MODEL, "--passes", "pruning"), 2, "write --passes prune"),
    ((*MODEL, "--passes", "svd"), 2, "write --passes kron"),
    ((*MODEL, "--passes", "finetune"), 2, "write --passes distill"),
    ((*MODEL, "--passes", "Int8"), 2, "did you mean 'int8'?"),
    ((*MODEL, "--passes", "krom"), 2, "did you mean 'kron'?"),
    ((*MODEL, "--passes", "mobile"), 2, "mobile is a target: --target mobile"),
    ((*MODEL, "--passes", "accuracy"), 2, "accuracy is a metric: --metric accuracy"),
    ((*MODEL, "--passes", "heads"), 2, "heads is an option: write --passes 'prune{heads=…}'"),
    # forms of passes and options
    ((*MODEL, "--passes", "prune(ffn=0.5)"), 2, "options stand in braces: 'prune{ffn=0.5}'"),
    ((*MODEL, "--passes", "prune[ffn=0.5]"), 2, "options stand in braces: 'prune{ffn=0.5}'"),
    ((*MODEL, "--passes", "prune:ffn=0.5"), 2, "options stand in braces: 'prune{ffn=0.5}'"),
    ((*MODEL, "--passes", "pruneffn=0.5"), 2, "options stand in braces, and all of it in quotes"),
    ((*MODEL, "--passes", "prune{ffn=0.5"), 2, "put the whole text in quotes"),
    ((*MODEL, "--passes", "kron int8"), 2, "join them by commas: kron,int8"),
    ((*MODEL, "--passes", "kron+int8"), 2, "join them by commas: kron,int8"),
    ((*MODEL, "--passes", "kron", "int8"), 2, "passes are one word: --passes kron,int8"),
    ((*MODEL, "--passes", "kron,", "int8"), 2, "passes are one word: --passes kron,int8"),
    (
        (*MODEL, "--passes", "prune{ffn=0.5", "heads=0.5}"),
        2,
        "passes are one word: --passes 'prune{ffn=0.5 heads=0.5}'",
    ),
    ((*MODEL, "--passes", "prune{fnn=0.5}"), 2, "did you mean 'ffn'?"),
    ((*MODEL, "--passes", "prune{ffn=50%}"), 2, "must be a number or none"),
    # targets
    ((*MODEL, "--target", "cuda"), 2, "write --target gpu"),
    ((*MODEL, "--target", "trt"), 2, "write --target tensorrt"),
    ((*MODEL, "--target", "android"), 2, "write --target mobile"),
    ((*MODEL, "--target", "onnxruntime"), 2, "write --target cpu"),
    ((*MODEL, "--target", "int8"), 2, "int8 is a pass: --passes int8"),
    ((*MODEL, "--target", "tensort"), 2, "did you mean 'tensorrt'?"),
    # metrics
    ((*MODEL, "--metric", "f1"), 2, "write --metric entity-f1, squad-f1 or my_file.py:function"),
    ((*MODEL, "--metric", "acc"), 2, "write --metric accuracy"),
    # options
    ((*MODEL, "--quantize"), 2, "write --passes int8"),
    ((*MODEL, "--fp16"), 2, "write --target 'cpu{float_storage=fp16}'"),
    ((*MODEL, "--ffn", "0.5"), 2, "ffn is an option: write "),
    ((*MODEL, "--calibration-data", "d.jsonl"), 2, "write --data"),
    ((*MODEL, "--device", "cpu"), 2, "write --target"),
    ((*MODEL, "--force"), 2, "write --overwrite"),
    (("optimize", "--model", "model.onnx"), 2, "give the model first"),
    (("optimise", "model.onnx"), 2, "Did you mean 'optimize'?"),
    # models
    (("optimize", "model.safetensors"), 5, "give the folder that holds it and its config.json"),
    (("optimize", "pytorch_model.bin"), 5, "give the folder that holds it and its config.json"),
    (("optimize", "model.tflite"), 5, "give the ONNX file or the checkpoint it was made from"),
    (("optimize", "bert-base-uncased"), 5, "has its owner: OWNER/bert-base-uncased"),
    (("optimize", "folder"), 5, "give a file in it, folder/other.onnx"),
    (("optimize", "--passes", "prune", "int8"), 5, "int8: no such file or folder; "),
    # data
    ((*MODEL, "--data", "texts.txt"), 6, 'write each line as {"text": "…"}'),
    ((*MODEL, "--data", "rows.json"), 6, "write one object in each line"),
]
assert len(MISTAKES) >= 29


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert_path: Path) -> Path:
    """A folder with a model, and what people take for models and for data."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "model.onnx").write_bytes(tiny_bert_path.read_bytes())
    (folder / "folder").mkdir()
    (folder / "folder" / "other.onnx").write_bytes(b"")
    for name in ("model.safetensors", "pytorch_model.bin", "model.tflite", "texts.txt", "rows.json"):
        (folder / name).write_text("[]")
    return folder


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_is_told_what_to_type(
    folder: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    before = set(folder.iterdir())
    done = run(*arguments, cwd=folder)
    assert words in done.stderr
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert set(folder.iterdir()) == before
