"""Exports: written once into a folder, taken from there afterwards."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from matrix.architecture import Architecture
from matrix.architectures import HIDDEN
from matrix.forms import FORMS, fused
from matrix.variants import DYNAMO, FUSED, LEGACY, Variant, fused_as

if TYPE_CHECKING:
    import torch

METADATA = {"author": "somebody", "purpose": "support matrix"}


class ExportError(Exception):
    """An exporter, or another tool before the library, cannot make this form; the message is its own."""


@dataclass(frozen=True)
class Export:
    """An exported file and what is known of its source."""

    name: str
    architecture: Architecture
    variant: Variant
    path: Path
    calls: dict[str, list[list[int]]]

    def __str__(self) -> str:
        return f"{self.name} · {self.variant}"


def export(name: str, architecture: Architecture, variant: Variant, folder: Path) -> Export:
    """The export of one variant; a file that is in ``folder`` already is taken from there.

    Raises:
        ExportError: it cannot be made.
    """
    whole = _file(name, variant, folder)
    if not whole.exists():
        _kept_failure(whole, lambda: EXPORTERS[variant.exporter](architecture, variant, whole))
    path = export_file(name, variant, folder)
    if not path.exists():
        _kept_failure(path, lambda: _formed(name, architecture, variant, whole, path))
    return Export(name, architecture, variant, path, json.loads(whole.with_suffix(".json").read_text()))


def export_file(name: str, variant: Variant, folder: Path) -> Path:
    """Where an export lies."""
    whole = _file(name, variant, folder)
    return whole.with_name(f"{whole.stem}-{_plain(variant.form)}.onnx") if variant.form else whole


def _file(name: str, variant: Variant, folder: Path) -> Path:
    """Where the export lies from which a form is made."""
    exporter = "" if variant.exporter == DYNAMO else f"-{variant.exporter}"
    return folder / f"{_plain(name)}-{variant.attention}-{variant.opset}{exporter}.onnx"


def _plain(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def _kept_failure(path: Path, make: Callable[[], None]) -> None:
    """Make a file; what goes wrong is kept beside it, so that it is not tried again."""
    failure = path.with_suffix(".failed")
    if failure.exists():
        raise ExportError(failure.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        make()
    except Exception as error:  # whatever a foreign tool raises is its result
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = f"{type(error).__name__}: {lines[0][:160] if lines else ''}".rstrip(": ")
        failure.write_text(text)
        raise ExportError(text) from error


def _formed(name: str, architecture: Architecture, variant: Variant, whole: Path, path: Path) -> None:
    proto = onnx.load(whole)
    if variant.form != FUSED:
        onnx.save(FORMS[variant.form](proto), path)
        return
    heads = max(count for count, _ in architecture.heads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = fused(proto, fused_as(name), heads, HIDDEN)
    if not any(node.domain for node in made.graph.node):
        raise ExportError("its optimiser fuses nothing in it")
    del made.metadata_props[:]
    made.metadata_props.extend(proto.metadata_props)
    onnx.save(made, path)


def _dynamo(architecture: Architecture, variant: Variant, path: Path) -> None:
    import torch

    with _source(architecture, variant, path) as source:
        program = torch.onnx.export(
            source.module,
            source.arguments,
            dynamo=True,
            opset_version=variant.opset,
            dynamic_shapes={"arguments": tuple(item.axes for item in architecture.inputs.values())},
            input_names=list(architecture.inputs),
            output_names=source.outputs,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch gave no program")
        program.model.metadata_props.update(METADATA)
        program.save(path)


def _legacy(architecture: Architecture, variant: Variant, path: Path) -> None:
    import torch

    with _source(architecture, variant, path) as source:
        torch.onnx.export(
            source.module,
            source.arguments,
            path,
            dynamo=False,
            opset_version=variant.opset,
            dynamic_axes={name: item.axes for name, item in architecture.inputs.items()},
            input_names=list(architecture.inputs),
            output_names=source.outputs,
        )
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, METADATA)
        onnx.save(proto, path)


@dataclass(frozen=True)
class _Source:
    """What is exported: the module, its arguments and the names of its outputs."""

    module: torch.nn.Module
    arguments: tuple[torch.Tensor, ...]
    outputs: list[str]


@contextlib.contextmanager
def _source(architecture: Architecture, variant: Variant, path: Path) -> Iterator[_Source]:
    """The module, ready for an exporter; what it calls is written beside ``path``."""
    import torch

    from matrix.modules import Calls, Flat, randomised, tensors

    torch.manual_seed(0)
    module = Flat(randomised(architecture.make(variant.attention)), architecture.inputs).eval()
    feeds = [architecture.feed(0), architecture.feed(1, batch=3, sequence=6, past=4, source=8, texts=5)]
    path.with_suffix(".json").write_text(json.dumps(Calls(module, feeds).found))
    arguments = tensors(feeds[0])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield _Source(module, arguments, list(module.named(*arguments)))


EXPORTERS: dict[str, Callable[[Architecture, Variant, Path], None]] = {DYNAMO: _dynamo, LEGACY: _legacy}
