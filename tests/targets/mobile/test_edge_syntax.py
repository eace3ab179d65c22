"""The loading examples for Android and iOS are Kotlin and Swift: their grammars find no error in them."""

import pytest

from graphcompress.targets.mobile.bundle import unknown_types, write_bundle
from graphcompress.targets.mobile.interface import Interface, Port
from graphcompress.targets.mobile.kotlin_and_swift import identifiers

tree_sitter = pytest.importorskip(
    "tree_sitter", reason="the grammars need tree_sitter: pip install --group dev"
)

LANGUAGES = {"kotlin": "android/GraphCompressModel.kt", "swift": "ios/GraphCompressModel.swift"}
FIXED = Interface(
    (
        Port("input_ids", "int64", (1, 16), (1, 16)),
        Port("pixel-values", "float32", (1, 3, 8, 8), (1, 3, 8, 8)),
    ),
    (Port("logits", "float32", (1, 5), (1, 5)),),
)
VARIABLE = Interface(
    (Port("0.ids", "int32", ("batch", "length"), None), Port("mask", "int64", ("batch", "length"), None)),
    (Port("logits", "float32", ("batch", 5), None),),
)


def errors(language, text):
    """What the grammar of ``language`` does not understand in ``text``, or misses there."""
    grammar = pytest.importorskip(f"tree_sitter_{language}", reason="pip install --group dev")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    pending, found = [parser.parse(text.encode()).root_node], []
    while pending:
        node = pending.pop()
        if node.is_error or node.is_missing:
            found.append((node.start_point.row + 1, node.text.decode()[:60]))
        pending.extend(node.children)
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("provider", ["cpu", "xnnpack", "nnapi", "coreml"])
@pytest.mark.parametrize("interface", [FIXED, VARIABLE], ids=["fixed", "variable"])
def test_the_examples_parse(language, provider, interface, tmp_path):
    write_bundle(tmp_path, interface, provider=provider, parts="")
    assert errors(language, (tmp_path / LANGUAGES[language]).read_text()) == []


@pytest.mark.parametrize(("language", "text"), [("kotlin", "fun f( = 1"), ("swift", "func f( -> Int {")])
def test_an_error_would_be_found(language, text):
    assert errors(language, text)


# ---- names and types of a model, as the languages take them

ODD = Interface(
    tuple(
        Port(name, "int64", (1, 4), None if index % 2 else (1, 4))
        for index, name in enumerate(["inputs", "in", "x.1", "x_1", "x1Shape", "$x", 'a"b', "数", "session"])
    ),
    (Port("best$", "int64", (1,), (1,)), Port("logits", "float32", (1, 5), (1, 5))),
)


def test_names_are_words_that_both_languages_take_and_none_comes_twice():
    names = identifiers(ODD.inputs)
    assert len({*names.values(), *(f"{name}Shape" for name in names.values())}) == 2 * len(ODD.inputs)
    assert not {"inputs", "in", "session"} & set(names.values())
    assert identifiers(FIXED.inputs) == {"input_ids": "inputIds", "pixel-values": "pixelValues"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_odd_names_parse(language, tmp_path):
    write_bundle(tmp_path, ODD, provider="cpu", parts="")
    text = (tmp_path / LANGUAGES[language]).read_text()
    assert errors(language, text) == []
    assert ('"\\$x"' in text) == (language == "kotlin")
    assert '"a\\"b"' in text


def test_the_answer_has_the_type_of_the_first_output(tmp_path):
    write_bundle(tmp_path, ODD, provider="cpu", parts="")
    kotlin, swift = ((tmp_path / path).read_text() for path in LANGUAGES.values())
    assert "LongArray): LongBuffer {" in kotlin
    assert "return output.longBuffer" in kotlin
    assert "throws -> [Int64] {" in swift
    assert "bindMemory(to: Int64.self)" in swift
    for text in (kotlin, swift):
        assert "Returns the output best$ alone; the others: logits." in text


def test_an_output_without_a_word_has_no_loading_examples():
    half = Interface(FIXED.inputs, (Port("logits", "float16", (1, 5), (1, 5)),))
    assert unknown_types(half) == ["logits (float16)"]
    assert unknown_types(FIXED) == []


@pytest.mark.parametrize("provider", ["cpu", "xnnpack", "nnapi", "coreml"])
def test_what_runs_the_graph_is_asked_for_and_built_in(provider, tmp_path):
    write_bundle(tmp_path, FIXED, provider=provider, parts="")
    swift = (tmp_path / LANGUAGES["swift"]).read_text()
    assert ("createMLProgram = true" in swift) == (provider == "coreml")
    build = (tmp_path / "README.md").read_text().partition("--minimal_build")[2].partition("`")[0]
    assert build == ("" if provider == "cpu" else f" extended --use_{provider}") + " --skip_tests"
