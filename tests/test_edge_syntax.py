"""The loading examples for Android and iOS are Kotlin and Swift: their grammars find no error in them."""

import pytest

from graphcompress.edge.bundle import write_bundle
from graphcompress.edge.interface import Interface, Port

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
