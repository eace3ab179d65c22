"""Forms in which one architecture comes: attention implementation, operator set, and what was stripped."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from matrix.architecture import Architecture

METADATA = {"author": "somebody", "purpose": "support matrix"}
REPRESENTATIVE = frozenset(
    {
        "bert",
        "deberta-v2",
        "modernbert",
        "gpt2, past",
        "llama",
        "llama, past",
        "t5",
        "bart",
        "whisper",
        "vit",
        "swin",
    }
)
"""Architectures that are also exported at opsets 20 and 23."""


@dataclass(frozen=True)
class Variant:
    """One form of an export.

    Attributes:
        attention: implementation in the source model.
        opset: version of the standard operator set.
        stripped: without inferred shapes, names of nodes, and doc strings.
    """

    attention: str
    opset: int
    stripped: bool = False

    def __str__(self) -> str:
        return f"{self.attention}, opset {self.opset}{', stripped' if self.stripped else ''}"


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


def variants(name: str, architecture: Architecture) -> Iterator[Variant]:
    """Opset 18 with every attention, as it is and stripped; of some also opset 20 and 23."""
    for attention in architecture.attention:
        yield Variant(attention, 18)
        yield Variant(attention, 18, stripped=True)
    if name not in REPRESENTATIVE:
        return
    yield Variant(architecture.attention[-1], 20)
    for attention in architecture.attention:
        yield Variant(attention, 23)


def export(name: str, architecture: Architecture, variant: Variant, folder: Path) -> Export:
    """The export of one variant; a file that is in ``folder`` already is taken from there."""
    whole = export_file(name, variant, folder)
    if not whole.exists():
        _export(architecture, variant, whole)
    calls = json.loads(whole.with_suffix(".json").read_text())
    path = whole
    if variant.stripped:
        path = whole.with_name(f"{whole.stem}-stripped.onnx")
        if not path.exists():
            onnx.save(stripped(onnx.load(whole)), path)
    return Export(name, architecture, variant, path, calls)


def export_file(name: str, variant: Variant, folder: Path) -> Path:
    """Where an export lies (that from which a stripped one is made)."""
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    return folder / f"{stem}-{variant.attention}-{variant.opset}.onnx"


def stripped(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what inference, debugging and readers like: shapes, node names, doc strings."""
    del proto.graph.value_info[:]
    proto.graph.doc_string = proto.doc_string = ""
    for node in proto.graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
    for tensor in proto.graph.initializer:
        tensor.doc_string = ""
    return proto


def _export(architecture: Architecture, variant: Variant, path: Path) -> None:
    import torch

    from matrix.modules import Calls, Flat, randomised, tensors

    torch.manual_seed(0)
    module = Flat(randomised(architecture.make(variant.attention)), architecture.inputs)
    feeds = [architecture.feed(0), architecture.feed(1, batch=3, sequence=6, past=4, source=8, texts=5)]
    calls = Calls(module, feeds).found
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = list(module.named(*tensors(feeds[0])))
        program = torch.onnx.export(
            module,
            tensors(feeds[0]),
            dynamo=True,
            opset_version=variant.opset,
            dynamic_shapes={"arguments": tuple(item.axes for item in architecture.inputs.values())},
            input_names=list(architecture.inputs),
            output_names=names,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch gave no program")
    path.parent.mkdir(parents=True, exist_ok=True)
    program.model.metadata_props.update(METADATA)
    program.save(path)
    path.with_suffix(".json").write_text(json.dumps(calls))
