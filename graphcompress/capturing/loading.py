"""Hugging Face checkpoints: a folder or a hub name becomes a module in evaluation mode."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphcompress.errors import (
    GraphCompressError,
    InvalidModelError,
    UnsupportedModelError,
    UsageError,
    nearest,
)
from graphcompress.files.runtime import first_line

SHORT_TASKS = {"features": "feature-extraction", "classification": "sequence-classification"}
"""Names of tasks beside those of transformers' own classes and pipelines."""

RENAMED_PIPELINES = {
    "text2text-generation": ("AutoModelForSeq2SeqLM",),
    "translation": ("AutoModelForSeq2SeqLM",),
    "summarization": ("AutoModelForSeq2SeqLM",),
    "image-to-text": ("AutoModelForVision2Seq", "AutoModelForImageTextToText"),
}
"""Pipelines of transformers 4 that version 5 has no name for → the classes that they load."""

_WEIGHT_FILES = ("*.safetensors", "*.bin")
_MODULES = "modules.json"


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a Hugging Face folder: a configuration and weights."""
    path = Path(transformer_of(path))
    return (path / "config.json").is_file() and any(any(path.glob(kind)) for kind in _WEIGHT_FILES)


def task_of_sentences(source: str | Path) -> str | None:
    """Features, where sentence-transformers made the folder: it pools them and needs no head."""
    return "features" if (Path(source) / _MODULES).is_file() else None


def transformer_of(source: str | Path) -> str | Path:
    """``source``, or the folder in it in which sentence-transformers keeps the model of transformers.

    Raises:
        InvalidModelError: a list of modules that cannot be read.
    """
    file = Path(source) / _MODULES
    if not file.is_file():
        return source
    try:
        modules = [dict(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise InvalidModelError(f"{file}: no list of modules ({error}); copy it again") from error
    ends = [entry for entry in modules if str(entry.get("type")).endswith("Transformer")]
    found = [str(entry.get("path", "")) for entry in ends]
    return Path(source) / found[0] if found else source


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        module: in evaluation mode and float32.
        missing: weights that the checkpoint has no values for, which are random numbers.
    """

    module: Any
    missing: Sequence[str]


def load(source: str | Path, task: str | None) -> Loaded:
    """The checkpoint ``source`` for ``task``; without one for what it says about itself.

    Raises:
        UsageError: an unknown task, or one that does not fit.
        InvalidModelError: no such checkpoint, or one that cannot be read.
        UnsupportedModelError: a class that transformers does not have.
    """
    import torch
    import transformers

    folder = Path(source)
    if folder.exists() and not is_checkpoint(folder):
        lacks = "weights (*.safetensors)" if (folder / "config.json").is_file() else "config.json"
        raise InvalidModelError(f"{source}: no Hugging Face checkpoint, {lacks} is not there")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        auto = _class_of(config, task)
        module, info = auto.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except GraphCompressError:
        raise
    except ValueError as error:  # transformers' way to say that a class does not know a configuration
        raise UsageError(
            f"{source}: task {task or 'of the checkpoint'} does not fit it ({first_line(error)})"
        ) from error
    except Exception as error:  # whatever is built from a damaged configuration may fail in any way
        raise InvalidModelError(
            f"{source}: cannot be loaded as a checkpoint ({first_line(error)})"
        ) from error
    # Keys and values are outputs of those parts only that ask for them.
    module.config.use_cache = False
    return Loaded(module.eval(), sorted(info["missing_keys"]))


def _class_of(config: Any, task: str | None) -> Any:  # noqa: ANN401 - classes of transformers
    """The class to load: of the task, or the one that the checkpoint was saved from."""
    import transformers

    if task is None:
        named = (config.architectures or ["AutoModel"])[0]
        if not hasattr(transformers, named):
            raise UnsupportedModelError(
                f"the checkpoint is a {named}, which transformers does not have; name its task with --task, "
                "or use graphcompress.capture(module, example_inputs) from Python"
            )
        return getattr(transformers, named)
    known = _tasks()
    wanted = SHORT_TASKS.get(task, task)
    if wanted not in known:
        raise UsageError(f"unknown task {task!r}; {nearest(task, [*SHORT_TASKS, *known])}")
    classes = [getattr(transformers, name) for name in known[wanted] if hasattr(transformers, name)]
    # A pipeline may have several classes: the one that knows the configuration is meant.
    fitting = [found for found in classes if type(config) in getattr(found, "_model_mapping", ())]
    return (fitting or classes)[0]


def _tasks() -> dict[str, Sequence[str]]:
    """Task → transformers' classes: ``AutoModelForMaskedLM`` is ``masked-lm``; its pipelines' names, too."""
    from transformers.models.auto import modeling_auto
    from transformers.pipelines import SUPPORTED_TASKS

    found: dict[str, Sequence[str]] = {
        _kebab(name): (name,) for name in dir(modeling_auto) if name.startswith("AutoModelFor")
    }
    for task, entry in SUPPORTED_TASKS.items():
        if entry.get("pt"):
            found.setdefault(task, [made.__name__ for made in entry["pt"]])
    return {**RENAMED_PIPELINES, **found}


def _kebab(name: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+(?:\d[A-Z][a-z]+)?", name.removeprefix("AutoModelFor"))
    return "-".join(word.lower() for word in words)


@contextlib.contextmanager
def transformers_quiet() -> Iterator[None]:
    """No progress bars and no advice of transformers on the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
