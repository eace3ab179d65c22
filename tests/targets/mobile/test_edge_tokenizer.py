"""The tokenizer of the web page gives the ids of the library that wrote tokenizer.json."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SCRIPT = Path(__file__).parents[3] / "targets" / "mobile" / "templates" / "tokenizer.js"
NODE = shutil.which("node")
TEXTS = [
    "A text to try.",
    "UnAffable naïve cafés, don't!  (tabs\tand\nlines)",
    "price: $5 + 3% <b> 日本語 ok\u200b\ufffd",
    "unknown " + "x" * 120,
    "",
]
PIECES = (
    "[PAD] [UNK] [CLS] [SEP] a text to try . un ##aff ##able nai ##ve cafe ##s , don ' t ! ( ) tabs and lines"
)
PIECES += " price : $ 5 + 3 % < b > 日 本 ok unknown x ##x A T"

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node.js")


def tokenizer(*, lowercase: bool) -> Tokenizer:
    vocabulary = {piece: index for index, piece in enumerate(PIECES.split())}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def in_node(code: str) -> object:
    assert NODE is not None
    script = f"import * as page from {json.dumps(SCRIPT.as_uri())}; console.log(JSON.stringify({code}))"
    command = [NODE, "--input-type=module", "--eval", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_page_encodes_as_the_library_does(lowercase: bool) -> None:
    made = tokenizer(lowercase=lowercase)
    found = in_node(f"{json.dumps(TEXTS)}.map(page.wordPiece({made.to_str()}))")
    assert found == [made.encode(text).ids for text in TEXTS]


def test_a_tokenizer_of_another_kind_is_not_followed() -> None:
    other = Tokenizer(models.BPE())
    assert in_node(f"page.wordPiece({other.to_str()})") is None


def test_inputs_are_made_by_their_names() -> None:
    names = [{"name": name} for name in ("input_ids", "attention_mask", "token_type_ids")]
    assert in_node(f"page.inputsOf({json.dumps({'inputs': names})}, [5, 6])") == {
        "input_ids": {"dims": [1, 2], "data": [5, 6]},
        "attention_mask": {"dims": [1, 2], "data": [1, 1]},
        "token_type_ids": {"dims": [1, 2], "data": [0, 0]},
    }
