"""``graphcompress generate`` prints what the model writes."""

from __future__ import annotations

import json
import re

import bigram
import pytest
from typer.testing import CliRunner

from graphcompress.cli import app
from graphcompress.errors import DataError


def output(*arguments: str, given: str | None = None) -> str:
    result = CliRunner().invoke(app, ["generate", *arguments], input=given, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_texts_of_the_command_line_a_file_and_standard_input(tmp_path):
    folder = str(bigram.decoder_alone(tmp_path))
    (tmp_path / "texts.txt").write_text("auf\n\nder\n")
    found = output(folder, "--text", "ein mann", "--file", str(tmp_path / "texts.txt"), "--beams", "2")
    assert found.splitlines() == ["sitzt auf der bank", "der bank", "bank"]
    assert output(folder, "--max-new-tokens", "1", given="ein\n") == "mann\n"


def test_json_names_the_text_and_the_answer(tmp_path):
    folder = str(bigram.encoder_decoder(tmp_path))
    assert json.loads(output(folder, "--text", "a man", "--json")) == [
        {"text": "a man", "answer": "ein mann sitzt auf der bank"}
    ]


def test_no_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="no text to answer"):
        output(str(bigram.decoder_alone(tmp_path)), given="\n")


def test_bench_prints_tokens_a_second_and_the_time_of_every_part(tmp_path):
    first, second = (str(bigram.encoder_decoder(tmp_path / name)) for name in ("a", "b"))
    arguments = ["bench", first, second, "--generate", "1x3,2x3", "--rounds", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    lines = result.stdout.splitlines()
    assert [line.partition(" tokens/s")[0].split()[:2] for line in lines[:4]] == [
        ["1×3:", "a"],
        ["1×3:", "b"],
        ["2×3:", "a"],
        ["2×3:", "b"],
    ]
    assert "first token" in lines[0]
    assert re.search(r"\([0-9.]+ ms in all, of which encoder [0-9.]+ ms, ", lines[0])
    assert lines[1].endswith("× as fast as a")
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert set(told["generate"][0]["speeds"]["b"]) == {
        "timing",
        "tokens_per_second",
        "first_token_ms",
        "parts_ms",
    }
