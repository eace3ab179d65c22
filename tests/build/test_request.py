"""One class says what a build is asked for; signature, command line, recipe and manifest follow from it."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from pathlib import Path

import pytest
from typer.main import get_command

import graphcompress
from graphcompress import Request, optimize
from graphcompress.build.recipe import recipe_text
from graphcompress.build.request import deciding
from graphcompress.cli import app
from graphcompress.errors import MissingExtraError, UsageError
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.targeting import parse_target

FIELDS = {field.name: field for field in dataclasses.fields(Request)}
NOT_TYPED = {"inplace", "sha256", "pinned", "progress", "on_record"}
"""Fields that a command line has no words for; hashes are read from a recipe."""


def test_the_signature_of_optimize_is_that_of_a_request() -> None:
    shown, own = inspect.signature(optimize).parameters, inspect.signature(Request).parameters
    assert list(shown.values()) == list(own.values())
    assert [one for one in own if own[one].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD] == [
        "model",
        "passes",
    ]


def test_the_help_of_optimize_has_the_line_of_every_field() -> None:
    text = inspect.getdoc(optimize)
    assert text is not None
    assert all(f"{name}: {field.metadata['help']}" in text for name, field in FIELDS.items())


def test_the_command_line_has_an_option_for_every_field() -> None:
    (command,) = (
        found
        for name, found in get_command(app).commands.items()
        if name == "optimize"  # type: ignore[attr-defined]
    )
    typed = {parameter.name: parameter for parameter in command.params}
    for name, field in FIELDS.items():
        if name in NOT_TYPED:
            assert name not in typed
            continue
        flags = field.metadata["flags"] or (name if name == "model" else f"--{name.replace('_', '-')}",)
        assert tuple(typed[name].opts) == flags
        assert typed[name].help == field.metadata["help"]


def test_a_recipe_has_a_key_for_every_field_that_decides_the_result(tmp_path: Path) -> None:
    request = Request(
        tmp_path / "m.onnx",
        "int8",
        data="d.jsonl",
        tokenizer=Path("t"),
        max_length=256,
        metric="similarity",
        eval_data="e.jsonl",
        train="l.jsonl",
        teacher="t.onnx",
        task="features",
        max_drop="1%",
        max_size="25MB",
        allow={"int8"},
        sha256={"d.jsonl": "0"},
        pinned={"cpu": "{}"},
    )
    text = recipe_text(request.recipe)
    assert [field.name for field in deciding()] == list(request.recipe)
    assert all(f"{field.name} = " in text or f"[{field.name}]" in text for field in deciding())
    assert {*FIELDS} - {*request.recipe} == {
        *("output", "overwrite", "inplace", "bench", "progress", "on_record"),
    }


def test_objects_and_texts_ask_for_the_same() -> None:
    words = Request("m.onnx", "kron{rank=2},int8", target="cpu{measure=false}", allow=["kron"])
    steps = Pipeline.parse("kron{rank=2},int8")
    for passes in (steps, steps.passes, list(steps.passes)):
        things = Request(Path("m.onnx"), passes, target=parse_target("cpu{measure=false}"), allow=("kron",))
        assert things.recipe == words.recipe


def test_simplify_runs_first_unless_it_is_named() -> None:
    assert str(Request(passes="int8").pipeline) == "simplify,int8"
    assert str(Request(passes="int8,simplify").pipeline) == "int8,simplify"


def test_the_folder_is_named_after_model_and_target() -> None:
    assert Request("a/m.onnx").folder == Path("m-cpu")
    assert Request("a/m.onnx", target="cpu,mobile").folder == Path("m-compressed")
    assert Request("a/m.onnx", output="o").folder == Path("o")


def test_an_object_has_no_path_in_the_recipe(tiny_bert: graphcompress.Model, tiny_samples: object) -> None:
    recipe = Request(tiny_bert, data=tiny_samples).recipe  # type: ignore[arg-type]
    assert (recipe["model"], recipe["data"]) == (None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": 3}, "model must be a path, got 3"),
        ({"data": ["a.jsonl"]}, r"data must be a path, got \['a.jsonl'\]"),
        ({"passes": None}, "passes must be a text, got None"),
        ({"passes": ["int8"]}, "passes must be a text"),
        ({"target": 1.5}, "target must be a text, got 1.5"),
        ({"seed": "7"}, "seed must be a whole number, got '7'"),
        ({"max_length": "long"}, "max_length must be a whole number, got 'long'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"allow": "int8"}, "allow must be a list of texts, got 'int8'"),
        ({"require_coverage": "half"}, "require_coverage must be a number"),
        ({"overwrite": 1}, "overwrite must be true or false, got 1"),
        ({"sha256": {"a": 1}}, "sha256 must be a table of texts"),
    ],
)
def test_a_value_of_another_type_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": None}, "no model is given"),
        ({"passes": "nothing"}, "unknown pass 'nothing'"),
        ({"target": "cpu,cpu"}, "named twice"),
        ({"allow": ["prune"]}, "has no such pass"),
        ({"require_coverage": 2.0}, "is no share"),
        ({"eval_data": "e.jsonl"}, "read by a metric only"),
        ({"max_length": 0}, "give a number of tokens"),
        ({"metric": "similarity"}, "needs samples"),
        ({"metric": "beauty", "data": "d.jsonl"}, "beauty"),
        ({"train": "t.jsonl"}, "has none: distill"),
        ({"passes": "distill"}, "give samples to train on"),
        ({"passes": "prune{importance=xmax ffn=0.1}"}, "needs samples; give them with --data"),
        ({"passes": "int8{scheme=static}"}, "static scales are calibrated on samples"),
        ({"model": "out/model.onnx", "output": "out"}, "lies in out, which would be replaced"),
        ({"data": "./out/a/d.jsonl", "output": "out"}, "lies in out, which would be replaced"),
        ({"passes": "int8{scheme=dynamic}", "target": "tensorrt{build=never}"}, "change scheme to static"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_before_a_file_is_read(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Request(**{"model": "is-not-there.onnx", **values}).check()  # type: ignore[arg-type]


def test_a_missing_package_is_named_before_a_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("is-not-there.onnx", "distill", train="neither.jsonl")
    assert request.targets
    assert request.pipeline
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"distill needs torch.*pip install 'graphcompress\[torch\]'"):
        request.check()


def test_optimize_takes_a_request_or_its_fields(tiny_bert_path: Path, tmp_path: Path) -> None:
    whole = Request(tiny_bert_path, "simplify", target="cpu{measure=false}", output=tmp_path / "a")
    fields = {"target": "cpu{measure=false}", "output": tmp_path / "b"}
    made = [optimize(whole), optimize(tiny_bert_path, "simplify", **fields)]  # type: ignore[call-overload]
    assert made[0].recipe == made[1].recipe
    a, b = ((build.output / "model.onnx").read_bytes() for build in made)
    assert a == b
    with pytest.raises(TypeError, match="sed"):
        optimize(tiny_bert_path, sed=3)  # type: ignore[call-overload]


def test_hashes_of_a_request_are_compared(tiny_bert_path: Path) -> None:
    with pytest.raises(graphcompress.errors.DataError, match="its SHA-256 differs"):
        optimize(tiny_bert_path, sha256={tiny_bert_path.as_posix(): "0" * 64})
