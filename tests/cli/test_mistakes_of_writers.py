"""Bad input of models that write: one sentence and a documented code, before anything is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import bigram
import onnx
import pytest
from commandline import run
from sequence_models import VOCABULARY

WORDS = ("<pad>", "</s>", *(f"word{number}" for number in range(2, VOCABULARY)))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _other_size(folder: Path) -> None:
    """The encoder of a model whose states have another width."""
    model = onnx.load(folder / "encoder_model.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 7
    onnx.save(model, folder / "encoder_model.onnx")


def _other_vocabulary(folder: Path) -> None:
    """The step of a model that knows other tokens."""
    model = onnx.load(folder / "decoder_with_past_model.onnx")
    logits = next(value for value in model.graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[2].dim_value = VOCABULARY + 7
    onnx.save(model, folder / "decoder_with_past_model.onnx")


def _merged_beside(folder: Path) -> None:
    """A merged decoder, which is told from the others by its switch."""
    model = onnx.load(folder / "decoder_with_past_model.onnx")
    switch = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    model.graph.input.append(switch)
    onnx.save(model, folder / "decoder_model_merged.onnx")


def _nothing_returned(folder: Path) -> None:
    """A step that returns no keys and values of its own."""
    for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):
        model = onnx.load(folder / name)
        kept = [value for value in model.graph.output if ".decoder." not in value.name]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        onnx.save(model, folder / name)


def _larger_tokenizer(folder: Path) -> None:
    bigram.tokenizer((*WORDS, "one", "more")).save(str(folder / "tokenizer.json"))


def _as_it_is(folder: Path) -> None:
    """Nothing is wrong with the files."""


FOLDERS: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "no encoder": (without("encoder_model.onnx"), 5, "no encoder lies beside it; give the folder with enc"),
    "no first pass": (without("decoder_model.onnx"), 5, "which only a first pass returns; put decoder_model"),
    "another size": (_other_size, 5, "the files are parts of different models"),
    "another vocabulary": (_other_vocabulary, 5, "the files are parts of different models"),
    "merged beside separate": (_merged_beside, 5, "keep the merged file or the separate ones"),
    "past that nobody returns": (_nothing_returned, 5, "no part returns what its input 'past_key_values.0"),
    "a tokenizer of another vocabulary": (_larger_tokenizer, 6, "so it is another model's"),
}


@pytest.fixture
def marian(sequence_folders: Mapping[str, Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(sequence_folders["marian"], tmp_path / "marian")
    bigram.tokenizer(WORDS).save(str(folder / "tokenizer.json"))
    (tmp_path / "d.jsonl").write_text(json.dumps({"source": "word5 word6", "target": "word7"}))
    return folder


def refused(code: int, said: str, *arguments: object, cwd: Path) -> None:
    """The command ends with ``code`` and one line that says ``said``, and leaves nothing behind."""
    before = sorted(cwd.iterdir())
    done = run(*arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
    assert sorted(cwd.iterdir()) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_model(name: str, marian: Path, tmp_path: Path) -> None:
    broken, code, said = FOLDERS[name]
    broken(marian)
    refused(code, said, "optimize", "marian", "--data", "d.jsonl", "-o", "small", cwd=tmp_path)


METRICS = {
    "accuracy": "marian writes texts; give a metric of what a model writes",
    "perplexity": "metric perplexity is of text-generation, and marian encodes input_ids",
    "wer": "metric wer is of automatic-speech-recognition, and marian encodes input_ids",
}


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_that_do_not_fit_the_task(metric: str, marian: Path, tmp_path: Path) -> None:
    given = ("--data", "d.jsonl", "--metric", metric, "-o", "small")
    refused(2, METRICS[metric], "optimize", "marian", *given, cwd=tmp_path)


def test_a_text_longer_than_the_positions(marian: Path, tmp_path: Path) -> None:
    given, said = " ".join(["word5"] * 70), "has 70 tokens, the model has positions for 64; shorten it"
    refused(6, said, "generate", "marian", "--text", given, cwd=tmp_path)


def test_a_cache_that_steps_cannot_go_on_from(sequence_folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Scores of first passes, and of steps given their past, are those of the model it was made from."""
    for name in ("before", "after"):
        shutil.copytree(sequence_folders["llama"], tmp_path / name)
    model = onnx.load(tmp_path / "after" / "model.onnx")
    for value in model.graph.output:
        if value.name.startswith("present"):
            own = next(node for node in model.graph.node if value.name in node.output)
            own.output[list(own.output).index(value.name)] = f"{value.name}.own"
            for node in model.graph.node:
                node.input[:] = [f"{value.name}.own" if name == value.name else name for name in node.input]
            model.graph.node.append(onnx.helper.make_node("Neg", [f"{value.name}.own"], [value.name]))
    onnx.save(model, tmp_path / "after" / "model.onnx")
    done = run("verify", "before", "after", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert "after: steps with its own cache say something else than one pass" in done.stderr
    found = json.loads(done.stdout)
    assert found["continuity"]["a"]["error"] < 1e-5 < 0.1 < found["continuity"]["b"]["error"]
    assert found["own_cache"]["divergence"] > found["difference"]["outputs"][0]["divergence"] == 0.0


def test_an_empty_generation(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    bigram.decoder_alone(folder)
    refused(6, "wrote nothing for any of 1 texts", "generate", "model", "--text", "bank", cwd=tmp_path)
