"""What a user most likely meant whose command line does not read: one sentence that says what to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import typer

# Typer brings a copy of click of its own, whose classes are not those of an installed click.
BadUsage: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for every command line that does not read."""

OTHER_WORDS = {
    "model": "give the model first, without an option: graphcompress optimize MODEL",
    "quiet": "leave --verbose out: results are short without it",
    **dict.fromkeys(
        ("calib", "calibration", "calibration_data", "dataset", "samples", "input"), "write --data"
    ),
    **dict.fromkeys(("dev", "dev_data", "test", "test_data", "validation_data"), "write --eval-data"),
    **dict.fromkeys(("train_data", "training_data"), "write --train"),
    **dict.fromkeys(("out", "out_dir", "output_dir", "save"), "write --output or -o"),
    **dict.fromkeys(("force", "replace"), "write --overwrite"),
    **dict.fromkeys(("device", "runtime", "backend", "provider"), "write --target"),
    **dict.fromkeys(("config", "yaml", "toml"), "write --recipe"),
    **dict.fromkeys(("max_accuracy_drop", "max_loss", "tolerance"), "write --max-drop"),
    **dict.fromkeys(("speedup", "min_speed"), "write --min-speedup"),
}
"""Options as other tools call them → what they are called here."""


def sentence(error: Exception, arguments: Sequence[str]) -> str:
    """What is wrong with the ``arguments``, and what to type instead."""
    message = str(getattr(error, "format_message", error.__str__)()).strip().rstrip(".")
    advice = _joined_passes(arguments) if "extra argument" in message else _other_option(message)
    # A message that asks "Did you mean …?" has its advice already.
    if not advice and "?" not in message:
        command = next((word for word in arguments if not word.startswith("-")), "")
        advice = f"see graphcompress {command} --help".replace("  ", " ")
    return f"{message}; {advice}" if advice else message


def _other_option(message: str) -> str:
    """The right option for one that there is not, where the message has no nearer one."""
    from graphcompress.plugin.registry import meant

    name = message.partition("No such option: ")[2].partition(" ")[0]
    if not name:
        return ""
    word = name.lstrip("-").replace("-", "_").lower()
    if word in OTHER_WORDS:
        return OTHER_WORDS[word]
    return "" if "?" in message else meant(name)


def _joined_passes(arguments: Sequence[str]) -> str:
    """The passes as one word, where the shell made several words of them."""
    if "--passes" not in arguments:
        return ""
    words = []
    for word in arguments[arguments.index("--passes") + 1 :]:
        # The model may stand behind the passes.
        if word.startswith("-") or word.endswith(".onnx"):
            break
        words.append(word.strip(","))
    options = any(sign in word for word in words for sign in "{}=")
    joined = (" " if options else ",").join(words)
    return f"passes are one word: --passes {shlex.quote(joined)}" if len(words) > 1 else ""
