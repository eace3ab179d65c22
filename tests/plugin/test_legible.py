"""Names out of a file cannot move the cursor of a terminal, or turn a report around."""

from graphcompress.plugin.legible import legible


def test_control_characters_are_written_out() -> None:
    assert legible("a\x1b[31mred\x07\x9b\u202e") == "a\\x1b[31mred\\x07\\x9b\\u202e"


def test_text_stays_text() -> None:
    assert legible("größe → ∞, 词\n\ttable | row") == "größe → ∞, 词\n\ttable | row"
