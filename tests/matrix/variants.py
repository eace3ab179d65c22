"""Forms in which one architecture comes: attention, operator set, exporter, what was done with the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matrix.architecture import Architecture

REPRESENTATIVE = (
    "bert",
    "bart",
    "deberta-v2",
    "mpnet (relative bias)",
    "llama, past",
    "llama",
    "t5",
    "gpt2, past",
    "vit",
    "swin",
    "modernbert",
    "whisper",
)
"""Architectures that come early in every form, every other one first."""

EAGER_ONLY = ("mpnet", "deberta", "t5", "gemma2")
"""How architectures begin that transformers has no SDPA attention for."""

STORAGE = (
    "weights in fp16",
    "weights in bf16",
    "weights as Constant nodes",
    "batch fixed to 1",
    "all in fp16",
)
STORED = ("bert", "gpt2, past", "llama, past", "t5", "vit")
"""Architectures that come in every form of :data:`STORAGE`."""

DYNAMO, LEGACY = "dynamo", "legacy"
FUSED, SAVED = "fused by ONNX Runtime", "saved by ONNX Runtime"
STRIPPED, INPUTS, BFLOAT = "stripped", "weights are inputs, too", "all in bf16"

FUSED_AS = {
    "bert": ("bert", "distilbert", "roberta", "albert", "electra", "mpnet", "deberta"),
    "gpt2": ("gpt2",),
    "t5": ("t5",),
    "bart": ("bart", "marian", "whisper"),
    "vit": ("vit", "deit", "dinov2"),
    "swin": ("swin",),
    "clip": ("clip",),
    "phi": ("phi",),
    "qwen3": ("qwen3",),
    "gpt_neox": ("llama", "qwen2", "gemma", "modernbert"),
}
"""ONNX Runtime's name for a family of models → how architectures that are given to it begin."""


@dataclass(frozen=True)
class Variant:
    """One form of a model.

    Attributes:
        attention: implementation in the source model.
        opset: version of the standard operator set.
        form: what was done with the exported file, or nothing.
        exporter: torch's ``dynamo`` or ``legacy`` one.
    """

    attention: str
    opset: int
    form: str = ""
    exporter: str = DYNAMO

    def __str__(self) -> str:
        parts = [self.attention, f"opset {self.opset}"]
        parts += ["legacy exporter"] * (self.exporter == LEGACY) + [self.form] * bool(self.form)
        return ", ".join(parts)


def variants(name: str, architecture: Architecture) -> Iterator[Variant]:
    """All forms of one architecture."""
    for attention in architecture.attention:
        for opset in (18, 20, 23):
            yield Variant(attention, opset)
        yield Variant(attention, 18, exporter=LEGACY)
        yield Variant(attention, 18, STRIPPED)
    for exporter in (LEGACY, DYNAMO):
        yield Variant("eager", 18, FUSED, exporter)
    yield Variant(architecture.attention[0], 18, SAVED)
    if name in STORED:
        for form in STORAGE:
            yield Variant(architecture.attention[0], 18, form)
    if name == "bert":
        for form in (INPUTS, BFLOAT):
            yield Variant("sdpa", 18, form)


def urgency(name: str, variant: Variant) -> int:
    """Place in the order of a run: all architectures in one form, a few in every form, and so on outwards."""
    first = variant.attention == ("eager" if name.startswith(EAGER_ONLY) else "sdpa")
    if (variant.opset, variant.form, variant.exporter) == (18, "", DYNAMO):
        return 0 if first else 2
    if name in REPRESENTATIVE[::2]:
        return 1
    return 3 if name in REPRESENTATIVE else 4


def fused_as(name: str) -> str:
    """What ONNX Runtime's optimiser calls the family of an architecture."""
    found = (kind for kind, starts in FUSED_AS.items() if name.startswith(starts))
    return next(found, "bert")
